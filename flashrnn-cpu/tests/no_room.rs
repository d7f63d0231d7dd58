//! Starting threads whose stacks do not fit the address space is an error.
//!
//! The test limits the address space of its process, so it is the only one in this file. It is
//! excluded from the address sanitizer's run, because the sanitizer ends a process that cannot map
//! memory for a thread.
#![cfg(target_os = "linux")]

use flashrnn_core::Error;
use flashrnn_cpu::Cpu;

#[test]
fn threads_without_room_are_an_error() {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let limit = pages * 4096 + (32 << 20);
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: limits this process's address space.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    assert!(matches!(Cpu::with_threads(256), Err(Error::Device(_))));
}
