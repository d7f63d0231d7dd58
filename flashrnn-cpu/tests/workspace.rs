//! Calls with a workspace do not allocate, on any thread, and compute the same results whatever the
//! workspace contains.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use common::Workspaces;
use flashrnn_core::{
    Backend, Backward, Cell, Element, Elman, Error, Forward, Gru, Lstm, Options, Plan, Problem,
    Save, Slstm, bf16,
};
use flashrnn_cpu::Cpu;

/// The system's allocator, counting the allocations of all threads and the bytes in use.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded to `System`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        IN_USE.fetch_add(layout.size(), SeqCst);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller upholds the contract of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Returns the number of allocations of three forward and backward passes in the caller's
/// workspaces.
fn allocations<C: Cell, T: Element>(cpu: &Cpu, cell: &C, problem: &Problem) -> usize {
    let plan = common::plan::<T, C>(cpu, cell, problem);
    let (weights, shapes) = (common::pack(&plan), plan.shapes());
    let (wx, d_h) = (
        vec![T::default(); common::len(&shapes.wx())],
        vec![T::default(); common::len(&shapes.h())],
    );
    let (mut out, mut saved) = (common::results(&plan), plan.saved().unwrap());
    let mut workspaces = Workspaces::new(&plan);
    let before = ALLOCATIONS.load(SeqCst);
    for _ in 0..3 {
        plan.forward(Forward {
            states: Some(&mut out.states[..]),
            saved: Some(saved.view_mut()),
            workspace: Some(workspaces.get(0)),
            ..Forward::new(&weights, &wx[..])
        })
        .unwrap();
        plan.backward(Backward {
            wx: Some(&wx[..]),
            d_h: Some(&d_h[..]),
            d_r: Some(&mut out.d_r[..]),
            d_b: Some(&mut out.d_b[..]),
            workspace: Some(workspaces.get(1)),
            ..Backward::new(&weights, &out.states[..], saved.view(), &mut out.d_wx[..])
        })
        .unwrap();
    }
    ALLOCATIONS.load(SeqCst) - before
}

fn check<C: Cell, T: Element>(failures: &mut Vec<String>, cpus: &[Cpu], cell: &C) {
    // A single task, bundles of heads, a team of threads, an empty batch, many rows to sort, and a
    // team with a partly filled vector.
    for [batch, time, heads, head_dim] in [
        [3, 5, 1, 7],
        [16, 3, 12, 64],
        [1, 9, 1, 160],
        [0, 4, 2, 8],
        [70, 2, 1, 33],
        [2, 3, 1, 300],
    ] {
        for save in [Save::Gates, Save::Recompute] {
            let options = Options { save, ..Options::default() };
            let problem = Problem::new(batch, time, heads, head_dim).with(options);
            let lengths: Vec<i32> = (0..batch).map(|b| (b * 5 % (time + 1)) as i32).collect();
            for cpu in cpus {
                let what =
                    format!("{} {} {problem:?} on {} threads", C::NAME, T::DTYPE, cpu.threads());
                let n = allocations::<C, T>(cpu, cell, &problem);
                if n > 0 {
                    failures.push(format!("{what}: {n} allocations"));
                }
                let plan = common::plan::<T, C>(cpu, cell, &problem);
                let weights = common::pack(&plan);
                let want = common::run(&plan, &weights, Some(&lengths), None);
                let got =
                    common::run(&plan, &weights, Some(&lengths), Some(&mut Workspaces::new(&plan)));
                if want != got {
                    failures
                        .push(format!("{what}: the results depend on the workspace's contents"));
                }
            }
        }
    }
}

fn workspaces_may_have_any_address_but_not_fewer_bytes() {
    let plan = common::plan::<f32, _>(&Cpu::new(), &Lstm, &Problem::new(2, 3, 1, 5));
    let (weights, wx) = (common::pack(&plan), vec![0.0; common::len(&plan.shapes().wx())]);
    let bytes = plan.forward_workspace().bytes;
    let mut memory = vec![0; bytes + 64];
    for skipped in 0..64 {
        let workspace = Some(&mut memory[skipped..][..bytes]);
        plan.forward(Forward { workspace, ..Forward::new(&weights, &wx) }).unwrap();
    }
    let workspace = Some(&mut memory[..bytes - 1]);
    let result = plan.forward(Forward { workspace, ..Forward::new(&weights, &wx) });
    assert!(matches!(result, Err(Error::Shape { tensor: "workspace", .. })), "{result:?}");
}

fn trim_frees_the_kept_workspaces(cpu: &Cpu) {
    let options = Options { save: Save::Recompute, ..Options::default() };
    let plan = common::plan::<f32, _>(cpu, &Gru, &Problem::new(16, 64, 1, 64).with(options));
    let weights = common::pack(&plan);
    // Allocates what the plan and the weights keep: a step's scratch memory and transposed R.
    drop(common::run(&plan, &weights, None, None));
    cpu.trim().unwrap();
    let before = IN_USE.load(SeqCst);
    drop(common::run(&plan, &weights, None, None));
    let kept = IN_USE.load(SeqCst) - before;
    assert!(kept >= plan.backward_workspace().bytes, "{kept}");
    cpu.trim().unwrap();
    // The list of kept workspaces may have grown.
    assert!(IN_USE.load(SeqCst) - before < 1024);
}

/// This is the file's only test, so no other test allocates at the same time.
#[test]
fn workspaces() {
    let cpus = [1, 2, 4].map(|threads| Cpu::with_threads(threads).unwrap());
    // Threads allocate when they start.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut failures = Vec::new();
    check::<_, f32>(&mut failures, &cpus, &Elman);
    check::<_, f32>(&mut failures, &cpus, &Gru);
    check::<_, f32>(&mut failures, &cpus, &Lstm);
    check::<_, f32>(&mut failures, &cpus, &Slstm);
    check::<_, f64>(&mut failures, &cpus, &Lstm);
    check::<_, bf16>(&mut failures, &cpus, &Slstm);
    assert!(failures.is_empty(), "{failures:#?}");
    workspaces_may_have_any_address_but_not_fewer_bytes();
    trim_frees_the_kept_workspaces(&cpus[1]);
}
