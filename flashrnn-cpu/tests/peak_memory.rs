//! The peak memory of a training step stays close to the memory of its tensors.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use flashrnn_core::{
    Backend, Backward, Cell, Element, Elman, Forward, Gru, Lstm, Options, Plan, Problem, Save,
    Slstm, bf16,
};
use flashrnn_cpu::Cpu;

/// The system's allocator, counting the bytes in use and their maximum.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded to `System`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        PEAK.fetch_max(in_use, Ordering::SeqCst);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller upholds the contract of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Returns the ratio of the peak memory to that of the tensors: wx, R, b, states, the saved gates,
/// and the gradients of h, wx, R and b.
fn ratio<C: Cell, T: Element>(
    cell: &C,
    save: Save,
    [batch, time, heads, head_dim]: [usize; 4],
) -> f64 {
    let plan = Cpu::new()
        .plan::<T, T, C>(
            cell,
            &Problem::new(batch, time, heads, head_dim)
                .with(Options { save, ..Options::default() }),
        )
        .expect("a valid problem");
    let zeros = |dims: &[usize]| vec![T::default(); dims.iter().product()];
    let shapes = plan.shapes();
    let before = IN_USE.load(Ordering::SeqCst);
    let (wx, r, b) = (zeros(&shapes.wx()), zeros(&shapes.r()), zeros(&shapes.b()));
    let (mut states, d_h) = (zeros(&shapes.states()), zeros(&shapes.h()));
    let (mut d_wx, mut d_r, mut d_b) = (wx.clone(), r.clone(), b.clone());
    let mut saved = plan.saved().expect("memory");
    let tensors = IN_USE.load(Ordering::SeqCst) - before;
    PEAK.store(IN_USE.load(Ordering::SeqCst), Ordering::SeqCst);

    let weights = plan.pack(&r, &b).expect("valid sizes");
    let call = Forward {
        states: Some(&mut states[..]),
        saved: Some(saved.view_mut()),
        ..Forward::new(&weights, &wx[..])
    };
    plan.forward(call).expect("valid sizes");
    plan.backward(Backward {
        wx: Some(&wx[..]),
        d_h: Some(&d_h[..]),
        d_r: Some(&mut d_r[..]),
        d_b: Some(&mut d_b[..]),
        ..Backward::new(&weights, &states[..], saved.view(), &mut d_wx[..])
    })
    .expect("valid sizes");
    (PEAK.load(Ordering::SeqCst) - before) as f64 / tensors as f64
}

/// This is the file's only test, so no other test allocates at the same time.
#[test]
fn peak_memory_is_close_to_the_tensors_memory() {
    let mut failures = Vec::new();
    let mut check = |name: &str, ratio: f64| {
        println!("{name}: {ratio:.3}");
        if ratio > 1.3 {
            failures.push(format!("{name}: {ratio:.3}"));
        }
    };
    for save in [Save::Gates, Save::Recompute] {
        for shape in [[16, 256, 1, 256], [16, 256, 12, 64]] {
            check(&format!("elman f32 {save:?} {shape:?}"), ratio::<_, f32>(&Elman, save, shape));
            check(&format!("gru f32 {save:?} {shape:?}"), ratio::<_, f32>(&Gru, save, shape));
            check(&format!("lstm f32 {save:?} {shape:?}"), ratio::<_, f32>(&Lstm, save, shape));
            check(&format!("slstm f32 {save:?} {shape:?}"), ratio::<_, f32>(&Slstm, save, shape));
            check(&format!("lstm bf16 {save:?} {shape:?}"), ratio::<_, bf16>(&Lstm, save, shape));
            check(&format!("slstm bf16 {save:?} {shape:?}"), ratio::<_, bf16>(&Slstm, save, shape));
        }
    }
    assert!(failures.is_empty(), "peak over tensors, at most 1.3: {failures:#?}");
}
