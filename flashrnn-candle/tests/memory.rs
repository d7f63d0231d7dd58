//! Tests how much memory a kept result holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use flashrnn::Elman;
use flashrnn_candle::{Lstm, Recurrence, RnnConfig, SequenceOptions};

/// The system allocator with a count of the bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller upholds the contract of `dealloc`, and `pointer` is from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Returns the number of bytes that each of `n` results of `make` holds after everything else has
/// been dropped.
fn held_bytes<X>(n: usize, make: impl Fn() -> Result<X>) -> Result<usize> {
    let many = || (0..n).map(|_| make()).collect::<Result<Vec<_>>>();
    // Allocates first what is allocated once: threads, their scratch memory, plans.
    drop(many()?);
    let before = IN_USE.load(Ordering::SeqCst);
    let results = many()?;
    let after = IN_USE.load(Ordering::SeqCst);
    drop(results);
    Ok(after.saturating_sub(before) / n)
}

/// The bytes are counted per process, so this is the only test in this file.
#[test]
fn results_hold_only_themselves() -> Result<()> {
    let (time, dim) = (2000, 64);
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let (r, b) = (zeros(&[1, 1, dim, dim])?, zeros(&[1, 1, dim])?);
    let rnn = Recurrence::new(Elman);
    // A tensor's shape, operation and so on.
    let overhead = 2048;

    let last = held_bytes(20, || {
        let wx = zeros(&[1, time, 1, 1, dim])?;
        Ok(rnn.forward(&wx, &r, &b, &SequenceOptions::default())?.last)
    })?;
    assert!(last < 4 * dim + overhead, "a final state holds {last} bytes");

    let last = held_bytes(20, || {
        let wx = Var::zeros((1, time, 1, 1, dim), DType::F32, &Device::Cpu)?;
        Ok(rnn.forward(&wx, &r, &b, &SequenceOptions::default())?.last.detach())
    })?;
    assert!(last < 4 * dim + overhead, "a detached final state holds {last} bytes");

    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let lstm = Lstm::new(8, dim, RnnConfig::default(), vb)?;
    let parameters: usize = map.all_vars().iter().map(|var| 4 * var.elem_count()).sum();
    let grads = held_bytes(20, || {
        let x = zeros(&[1, time, 8])?;
        lstm.forward_t(&x, true)?.sum_all()?.backward()
    })?;
    // The states of the forward pass alone are 20 times as large.
    let states = 4 * 2 * time * dim;
    assert!(states > 10 * parameters);
    assert!(grads < 3 * parameters + 20 * overhead, "gradients of {parameters} bytes hold {grads}");
    Ok(())
}
