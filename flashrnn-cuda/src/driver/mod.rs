//! The driver's results and versions.

pub(crate) mod current;
pub(crate) mod library;
pub(crate) mod pool;
pub(crate) mod stream;

use std::ffi::CStr;
use std::ptr;

use cudarc::driver::sys::{self, CUresult};
use flashrnn_core::{Error, Result};

/// Counts the CUDA devices.
pub(crate) fn device_count() -> Result<usize> {
    library::driver()?;
    // SAFETY: the library is there; this may be called any number of times.
    let result = unsafe { sys::cuInit(0) };
    match result {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
        failed => return Err(failure(failed, "starting the NVIDIA driver (cuInit)")),
    }
    let mut count = 0;
    // SAFETY: the pointer is to an integer that lives through the call.
    check(unsafe { sys::cuDeviceGetCount(&raw mut count) }, "counting the devices")?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Turns the driver's result into ours. `what` was being done.
pub(crate) fn check(result: CUresult, what: &str) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        failed => Err(failure(failed, what)),
    }
}

/// The error for a failed call of the driver.
pub(crate) fn failure(result: CUresult, what: &str) -> Error {
    let mut text = ptr::null();
    // SAFETY: the pointer is to a pointer that lives through the call; the driver stores a static
    // text or null.
    let described = unsafe { sys::cuGetErrorString(result, &raw mut text) };
    if described != CUresult::CUDA_SUCCESS || text.is_null() {
        return Error::device(format!("{what}: {result:?}"));
    }
    // SAFETY: as above; zero-terminated.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    Error::device(format!("{what}: {text} ({result:?})"))
}
