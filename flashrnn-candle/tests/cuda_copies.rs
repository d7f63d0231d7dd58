//! Counts the copies to the host and the waits for the GPU in training steps of a module whose
//! tensors are on a CUDA device. Needs a GPU.
//!
//! The driver's functions are counted by functions of the same name in this program, which the
//! linker prefers to those of the driver's library.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::cuda_backend::cudarc::driver::sys::{CUdeviceptr, CUevent, CUresult, CUstream};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap};
use flashrnn_candle::{Lstm, RnnConfig, SequenceOptions};

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Returns the next library's function of this name.
fn next(name: &CStr) -> *mut c_void {
    const RTLD_NEXT: *mut c_void = -1_isize as *mut c_void;
    // SAFETY: the name is null-terminated.
    let found = unsafe { dlsym(RTLD_NEXT, name.as_ptr()) };
    assert!(!found.is_null(), "the driver has no {name:?}");
    found
}

/// Defines a function of the driver that counts its calls and forwards them.
macro_rules! counted {
    ($counter:ident, $name:ident, $text:literal, ($($argument:ident: $type:ty),*)) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type),*) -> CUresult {
            $counter.fetch_add(1, Ordering::SeqCst);
            // SAFETY: the driver's function of this name has this type.
            let forward = unsafe {
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) -> CUresult>(
                    next($text),
                )
            };
            // SAFETY: guaranteed by the caller.
            unsafe { forward($($argument),*) }
        }
    };
}

static TO_HOST: AtomicUsize = AtomicUsize::new(0);
static FROM_HOST: AtomicUsize = AtomicUsize::new(0);
static WAITS: AtomicUsize = AtomicUsize::new(0);

counted!(TO_HOST, cuMemcpyDtoH_v2, c"cuMemcpyDtoH_v2", (
    to: *mut c_void, from: CUdeviceptr, bytes: usize
));
counted!(TO_HOST, cuMemcpyDtoHAsync_v2, c"cuMemcpyDtoHAsync_v2", (
    to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream
));
counted!(TO_HOST, cuMemcpy, c"cuMemcpy", (to: CUdeviceptr, from: CUdeviceptr, bytes: usize));
counted!(TO_HOST, cuMemcpyAsync, c"cuMemcpyAsync", (
    to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream
));
counted!(FROM_HOST, cuMemcpyHtoDAsync_v2, c"cuMemcpyHtoDAsync_v2", (
    to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream
));
counted!(WAITS, cuStreamSynchronize, c"cuStreamSynchronize", (stream: CUstream));
counted!(WAITS, cuEventSynchronize, c"cuEventSynchronize", (event: CUevent));
counted!(WAITS, cuCtxSynchronize, c"cuCtxSynchronize", ());

/// The calls are counted per process, so this is the only test in this file.
#[test]
fn a_training_step_copies_nothing_to_the_host() -> Result<()> {
    for device in [Device::new_cuda(0)?, Device::new_cuda_with_stream(0)?] {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &device);
        let config =
            RnnConfig { layers: 2, bidirectional: true, dropout: 0.1, ..RnnConfig::default() };
        let lstm = Lstm::new(24, 64, config, vb)?;
        let mut optimizer = AdamW::new_lr(map.all_vars(), 0.01)?;
        let x = Tensor::randn(0f32, 1.0, (4, 50, 24), &device)?;
        let lengths = Tensor::new(&[50u32, 20, 0, 33], &device)?;
        let resets: Vec<u8> = (0..200).map(|i| u8::from(i % 17 == 5)).collect();
        let resets = Tensor::from_vec(resets, (4, 50), &device)?;
        let s0 = Tensor::zeros((2, 4, 4, 1, 64), DType::F32, &device)?;
        let options =
            SequenceOptions { s0: Some(&s0), lengths: Some(&lengths), resets: Some(&resets) };
        let mut step = || -> Result<Tensor> {
            let out = lstm.forward(&x, &options, true)?;
            let loss = (out.h.sqr()?.mean_all()? + out.last.sqr()?.mean_all()?)?;
            optimizer.backward_step(&loss)?;
            Ok(loss)
        };
        // Makes plans, handles and memory.
        step()?;
        device.synchronize()?;
        let counters = [&TO_HOST, &WAITS, &FROM_HOST];
        let before = counters.map(|counter| counter.load(Ordering::SeqCst));
        for _ in 0..3 {
            step()?;
        }
        let after = counters.map(|counter| counter.load(Ordering::SeqCst));
        let [to_host, waits, from_host] = std::array::from_fn(|i| after[i] - before[i]);
        println!(
            "3 training steps on {device:?}: {to_host} copies to the host, {waits} waits, \
             {from_host} copies from the host (of candle's, for shapes and constants)"
        );
        assert_eq!(to_host, 0, "copies to the host");
        assert_eq!(waits, 0, "waits");
        // The counters count.
        let loss = step()?.to_scalar::<f32>()?;
        assert!(loss.is_finite());
        assert!(TO_HOST.load(Ordering::SeqCst) > after[0], "reading the loss is a copy");
    }
    Ok(())
}
