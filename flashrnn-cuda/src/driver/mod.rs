//! The driver API: results as errors, and safe wrappers of what this crate uses.

pub(crate) mod cublas;
pub(crate) mod current;
pub(crate) mod library;
mod loader;
pub(crate) mod nvrtc;
pub(crate) mod pool;
pub(crate) mod stream;

use std::ffi::CStr;
use std::ptr;

use cudarc::driver::sys::{self, CUresult};
use flashrnn_core::{Error, Result};

/// Counts the CUDA devices.
pub(crate) fn device_count() -> Result<usize> {
    library::driver()?;
    // SAFETY: the library is loaded, and initialising it twice is allowed.
    let result = unsafe { sys::cuInit(0) };
    match result {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
        failed => return Err(failure(failed, "starting the NVIDIA driver (cuInit)")),
    }
    let mut count = 0;
    // SAFETY: `count` outlives the call.
    check(unsafe { sys::cuDeviceGetCount(&raw mut count) }, "counting the devices")?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Turns a result of the driver into a `Result`. `what` says what was being done.
pub(crate) fn check(result: CUresult, what: &str) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        failed => Err(failure(failed, what)),
    }
}

/// Returns the error of a failed call of the driver. `what` says what was being done.
pub(crate) fn failure(result: CUresult, what: &str) -> Error {
    let mut text = ptr::null();
    // SAFETY: `text` outlives the call. The driver sets it to a static string or null.
    let described = unsafe { sys::cuGetErrorString(result, &raw mut text) };
    if described != CUresult::CUDA_SUCCESS || text.is_null() {
        return Error::device(format!("{what}: {result:?}"));
    }
    // SAFETY: the string is static and null-terminated.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    Error::device(format!("{what}: {text} ({result:?})"))
}
