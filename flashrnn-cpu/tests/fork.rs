//! A forked child process, which has none of its parent's threads, computes the same results.
#![cfg(unix)]

mod common;

use flashrnn_core::{Lstm, Problem};
use flashrnn_cpu::Cpu;

#[test]
fn a_child_computes_the_same_as_its_parent() {
    let problem = Problem::new(16, 8, 4, 64);
    let cpus = [Cpu::new(), Cpu::with_threads(2).unwrap()];
    let plans = cpus.each_ref().map(|cpu| common::plan::<f32, _>(cpu, &Lstm, &problem));
    let weights = plans.each_ref().map(common::pack);
    let want = common::run(&plans[0], &weights[0], None, None);
    // SAFETY: this is the file's only test, so no other thread holds a lock; helpers are asleep or
    // looking for work.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: a signal ends the child if it hangs.
        unsafe { libc::alarm(60) };
        let same = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let inherited = plans
                .iter()
                .zip(&weights)
                .all(|(plan, weights)| common::run(plan, weights, None, None) == want);
            let again = Cpu::with_threads(2).unwrap();
            let made = [Cpu::new(), cpus[0].clone(), again].iter().all(|cpu| {
                let plan = common::plan::<f32, _>(cpu, &Lstm, &problem);
                common::run(&plan, &common::pack(&plan), None, None) == want
            });
            inherited && made
        }));
        // SAFETY: ends the child before it returns to the test harness.
        unsafe { libc::_exit(i32::from(!same.unwrap_or(false))) };
    }
    let mut status = 0;
    // SAFETY: writes the child's status to a valid address.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "status {status:#x}");
}
