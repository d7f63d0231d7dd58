//! What this crate's own tests do where a device or a library is missing: they say that they skip,
//! and fail instead where `FLASHRNN_REQUIRE` names what they need.

use crate::{Cuda, kernels::compile::Nvrtc};
use flashrnn_core::Result;
use flashrnn_gpu::or_skip;

/// A device, or a line that says why the test is skipped.
///
/// # Panics
/// With `FLASHRNN_REQUIRE=cuda`, where there is no device.
#[must_use]
pub fn cuda() -> Option<Cuda> {
    or_skip(Cuda::new(), &["cuda"])
}

/// Whether NVRTC is there, or a line that says why the test is skipped.
///
/// # Panics
/// With `FLASHRNN_REQUIRE=nvrtc` or `cuda`, where it isn't.
#[must_use]
pub fn nvrtc() -> bool {
    or_skip(Nvrtc::get(), &["nvrtc", "cuda"]).is_some()
}

/// How many modules the handle's device has loaded, in all of its streams.
#[must_use]
pub fn loaded_modules(cuda: &Cuda) -> usize {
    cuda.device.shared.loaded()
}

/// The most memory that buffers took at any time during `calls`, in bytes: of the pool, so of all
/// streams.
///
/// # Errors
/// Those of `calls`; [`Error::Device`](flashrnn_core::Error::Device).
pub fn most_memory_in(cuda: &Cuda, calls: impl FnOnce() -> Result<()>) -> Result<u64> {
    let _entered = cuda.device.enter()?;
    let Some(pool) = &cuda.device.shared.pool else { return Ok(0) };
    pool.forget_peak()?;
    calls()?;
    pool.peak()
}
