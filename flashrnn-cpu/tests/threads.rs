//! Calls from the threads of other pools. No thread runs another job while it waits, so a thread
//! that holds a lock during a call never tries to take the lock again.

mod common;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use flashrnn_core::{Backend, Error, Forward, Lstm, Plan, Problem};
use flashrnn_cpu::Cpu;
use rayon::prelude::*;

/// Advances one stream's state under a lock from rayon's threads. Returns the final state.
fn stream(cpu: &Cpu, batch: usize, head_dim: usize) -> Vec<f32> {
    let (time, calls) = (10, 64);
    let plan = common::plan::<f32, _>(cpu, &Lstm, &Problem::new(batch, time, 1, head_dim));
    let weights = common::pack(&plan);
    let wx = common::ramp::<f32>(common::len(&plan.shapes().wx()), 1.0);
    let state = Mutex::new(vec![0.0; common::len(&plan.shapes().state())]);
    (0..calls).into_par_iter().with_max_len(1).for_each(|_| {
        let mut state = state.lock().unwrap();
        let before = state.clone();
        let call = Forward {
            s0: Some(&before[..]),
            last: Some(&mut state[..]),
            ..Forward::new(&weights, &wx)
        };
        plan.forward(call).unwrap();
    });
    state.into_inner().unwrap()
}

/// Runs a test, and aborts the process if it hangs.
fn within(limit: Duration, test: impl FnOnce()) {
    let done = std::sync::Arc::new(());
    let watched = std::sync::Arc::downgrade(&done);
    std::thread::spawn(move || {
        let start = Instant::now();
        while start.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(50));
            if watched.upgrade().is_none() {
                return;
            }
        }
        eprintln!("not done after {limit:?}");
        std::process::abort();
    });
    test();
    drop(done);
}

#[test]
fn a_lock_held_during_a_call_does_not_deadlock() {
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap();
    let cpus = [
        Cpu::with_threads(1).unwrap(),
        Cpu::with_threads(2).unwrap(),
        Cpu::with_threads(16).unwrap(),
        Cpu::new(),
    ];
    within(Duration::from_secs(120), || {
        for (batch, head_dim) in [(1, 256), (16, 64)] {
            let want = stream(&cpus[0], batch, head_dim);
            for cpu in &cpus {
                for _ in 0..5 {
                    assert!(rayon.install(|| stream(cpu, batch, head_dim)) == want);
                }
            }
        }
    });
}

#[test]
fn invalid_numbers_of_threads_are_errors() {
    for threads in [0, Cpu::MAX_THREADS + 1, 100_000] {
        assert!(matches!(
            Cpu::with_threads(threads),
            Err(Error::InvalidProblem { option: "threads", .. })
        ));
    }
}

/// A cell panics in the first step.
#[test]
fn a_panic_leaves_the_backend_usable() {
    use flashrnn_core::{Cell, Gate, Real};

    #[derive(Clone)]
    struct Panics;

    impl Cell for Panics {
        const NAME: &'static str = "panics";
        const STATES: &'static [&'static str] = &["h"];
        const GATES: &'static [Gate] = &[Gate::both("g")];
        type State<R: Real> = [R; 1];
        type Gates<R: Real> = [R; 1];

        fn forward<R: Real>(&self, _: [R; 1], _: [R; 1]) -> [R; 1] {
            panic!("a cell panics")
        }
    }

    let cpu = Cpu::with_threads(2).unwrap();
    for [batch, heads, head_dim] in [[16, 12, 8], [1, 1, 512]] {
        let plan =
            cpu.plan::<f32, f32, _>(&Panics, &Problem::new(batch, 8, heads, head_dim)).unwrap();
        let (weights, wx) = (common::pack(&plan), vec![0.0; common::len(&plan.shapes().wx())]);
        let call = std::panic::AssertUnwindSafe(|| plan.forward(Forward::new(&weights, &wx)));
        assert!(std::panic::catch_unwind(call).is_err());
        let want = stream(&Cpu::with_threads(1).unwrap(), batch, 64);
        assert!(stream(&cpu, batch, 64) == want);
    }
}
