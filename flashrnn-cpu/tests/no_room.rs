//! Threads for whose stacks the address space has no room. In a process of its own, whose address
//! space it limits. The address sanitizer's run leaves this test out, because the sanitizer ends
//! the process where it cannot map memory for a thread.
#![cfg(target_os = "linux")]

use flashrnn_core::Error;
use flashrnn_cpu::Cpu;

#[test]
fn threads_without_room_are_an_error() {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let room = pages * 4096 + (32 << 20);
    let limit = libc::rlimit { rlim_cur: room, rlim_max: room };
    // SAFETY: sets a limit of this process's address space.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    assert!(matches!(Cpu::with_threads(256), Err(Error::Device(_))));
}
