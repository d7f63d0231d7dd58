//! Helpers of this crate's tests. A test skips itself if it lacks a GPU or a library, and fails
//! instead if `FLASHRNN_REQUIRE` names what it lacks.

use flashrnn_core::Result;
use flashrnn_gpu::or_skip;

use crate::backend::Cuda;
use crate::kernels::compile::Nvrtc;

/// Opens the first GPU, or prints why the test is skipped.
///
/// # Panics
/// If there is no GPU and `FLASHRNN_REQUIRE` contains `cuda`.
#[must_use]
pub fn cuda() -> Option<Cuda> {
    or_skip(Cuda::new(), &["cuda"])
}

/// Returns whether NVRTC is available. If not, prints that the test is skipped.
///
/// # Panics
/// If NVRTC is missing and `FLASHRNN_REQUIRE` contains `nvrtc` or `cuda`.
#[must_use]
pub fn nvrtc() -> bool {
    or_skip(Nvrtc::get(), &["nvrtc", "cuda"]).is_some()
}

/// Counts the modules loaded in the handle's context, for all of its streams.
#[must_use]
pub fn loaded_modules(cuda: &Cuda) -> usize {
    cuda.kernels.loaded()
}

/// Returns the maximum memory in use by buffers during `calls`, in bytes, on all streams of the
/// pool.
///
/// # Errors
/// Any error of `calls`; [`Error::Device`](flashrnn_core::Error::Device) if the driver fails.
pub fn peak_memory_of(cuda: &Cuda, calls: impl FnOnce() -> Result<()>) -> Result<u64> {
    let _entered = cuda.device.enter()?;
    let Some(pool) = &cuda.device.context.pool else { return Ok(0) };
    pool.reset_peak()?;
    calls()?;
    pool.peak()
}
