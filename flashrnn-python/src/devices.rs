//! The handles of the devices that plans run on, each made once.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use flashrnn_core::Result;
use flashrnn_cpu::Cpu;
use flashrnn_cuda::Cuda;
use flashrnn_cuda::cudarc::driver::sys::CUstream;

/// Returns the CPU backend with `threads` threads, or with the default number if that is 0.
///
/// Backends belong to their process, because a forked child has none of its parent's threads. They
/// are never dropped, since a child must not try to stop its parent's threads.
///
/// # Errors
/// [`flashrnn_core::Error::InvalidProblem`] if there are too many threads,
/// [`flashrnn_core::Error::Device`] if the threads cannot be started.
pub(crate) fn cpu(threads: usize) -> Result<Cpu> {
    static CPUS: LazyLock<Mutex<HashMap<(u32, usize), Cpu>>> = LazyLock::new(Mutex::default);
    let (mut cpus, key) = (lock(&CPUS), (std::process::id(), threads));
    if let Some(cpu) = cpus.get(&key) {
        return Ok(cpu.clone());
    }
    let cpu = if threads == 0 { Cpu::new() } else { Cpu::with_threads(threads)? };
    Ok(cpus.entry(key).or_insert(cpu).clone())
}

/// Returns the backend that enqueues on `stream`, a raw handle, of the GPU `ordinal`.
///
/// # Safety
/// `stream` is 0 or a stream of the GPU's primary context that exists as long as plans use it.
///
/// # Errors
/// [`flashrnn_core::Error::Device`] if the driver or the GPU is missing or fails.
pub(crate) unsafe fn cuda(ordinal: usize, stream: usize) -> Result<Cuda> {
    static CUDAS: LazyLock<Mutex<HashMap<(usize, usize), Cuda>>> = LazyLock::new(Mutex::default);
    let mut cudas = lock(&CUDAS);
    if let Some(cuda) = cudas.get(&(ordinal, stream)) {
        return Ok(cuda.clone());
    }
    // All streams of a GPU share its context and the loaded kernels.
    let of_gpu = cudas.iter().find(|((other, _), _)| *other == ordinal).map(|(_, cuda)| cuda);
    let of_gpu = of_gpu.map_or_else(|| Cuda::with_device(ordinal), |cuda| Ok(cuda.clone()))?;
    // SAFETY: guaranteed by the caller. A stream runs work in the order in which it is enqueued.
    let stream_handle =
        unsafe { of_gpu.stream().context().wrap_borrowed_stream(stream as CUstream) };
    let cuda = of_gpu.with_stream(stream_handle)?;
    Ok(cudas.entry((ordinal, stream)).or_insert(cuda).clone())
}

/// Locks a map. A poisoned lock is safe to use, since every change is a single insertion.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
