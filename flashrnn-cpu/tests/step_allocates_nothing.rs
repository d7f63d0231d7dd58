//! A step does not allocate.

use std::alloc::{GlobalAlloc, Layout, System};

use flashrnn_core::{Backend, Cell, Elman, Gru, Lstm, Plan, Problem, Slstm, Step};
use flashrnn_cpu::Cpu;

/// The system's allocator, counting the allocations of each thread, because the test harness's
/// threads allocate too.
struct Counting;

thread_local! {
    static ALLOCATIONS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

// SAFETY: every call is forwarded to `System`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Fails in a thread that is ending, which is not the one under test.
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn check<C: Cell>(cell: &C, batch: usize, heads: usize, head_dim: usize) {
    let backend = Cpu::new();
    let problem = Problem::new(batch, 1, heads, head_dim);
    let plan = backend.plan::<f32, f32, C>(cell, &problem).expect("a valid problem");
    let shapes = plan.shapes();
    let units = shapes.units();
    let (r, b) = (vec![0.1; shapes.r().iter().product()], vec![0.1; shapes.b().iter().product()]);
    let weights = plan.pack(&r, &b).expect("valid sizes");
    let wx = vec![0.1; batch * shapes.external * units];
    let mut state = vec![0.0; shapes.states * batch * units];
    let mut h = vec![0.0; batch * units];
    let mut step = || {
        plan.step(Step { wx: &wx, weights: &weights, state: &mut state, h: Some(&mut h) })
            .expect("valid sizes");
    };
    // The first step allocates its scratch memory.
    step();
    step();
    let before = ALLOCATIONS.get();
    for _ in 0..100 {
        step();
    }
    let allocations = ALLOCATIONS.get() - before;
    assert_eq!(allocations, 0, "{} with B = {batch}, N = {heads}, D = {head_dim}", C::NAME);
}

/// A step runs on the calling thread, so no other thread allocates for it.
#[test]
fn step_allocates_nothing() {
    for (batch, heads, head_dim) in [(1, 1, 1), (1, 4, 64), (3, 2, 33), (16, 4, 64), (1, 1, 512)] {
        check(&Elman, batch, heads, head_dim);
        check(&Gru, batch, heads, head_dim);
        check(&Lstm, batch, heads, head_dim);
        check(&Slstm, batch, heads, head_dim);
    }
}
