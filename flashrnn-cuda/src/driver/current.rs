//! The CUDA context that is current on a thread. Every call makes the device's context current and
//! restores the caller's before it returns. Meanwhile, it may do what a capture on another stream or
//! thread forbids in its strictest mode, such as loading a module.

use std::ops::Deref;
use std::ptr;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUcontext, CUstreamCaptureMode as CaptureMode};
use flashrnn_core::Result;

use crate::driver::check;

/// Makes `context` current on this thread until the guard is dropped. The same thread must drop it.
pub(crate) fn enter(context: &CudaContext) -> Result<Entered> {
    let before = current()?;
    let capture = exchange_capture_mode(CaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
    if before == context.cu_ctx() as usize {
        return Ok(Entered { before: None, capture });
    }
    let entered = Entered { before: Some(before), capture };
    // SAFETY: the reference keeps the context alive.
    check(unsafe { sys::cuCtxSetCurrent(context.cu_ctx()) }, "entering the device's context")?;
    Ok(entered)
}

/// Returns a guard that restores the context that is current now. Used around calls of cudarc,
/// which makes its own context current.
pub(crate) fn keep() -> Result<Entered> {
    let before = current()?;
    let capture = exchange_capture_mode(CaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
    Ok(Entered { before: Some(before), capture })
}

/// Sets what this thread may do while any stream is being captured, and returns what it might do
/// before. In relaxed mode it may allocate and load modules. Nothing of that is captured or depends
/// on captured work.
fn exchange_capture_mode(mode: CaptureMode) -> Result<CaptureMode> {
    let mut mode = mode;
    // SAFETY: `mode` outlives the call.
    let result = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
    check(result, "setting the thread's capture mode")?;
    Ok(mode)
}

/// Returns the address of the thread's current context, or 0 if there is none.
fn current() -> Result<usize> {
    let mut current = ptr::null_mut();
    // SAFETY: `current` outlives the call.
    check(unsafe { sys::cuCtxGetCurrent(&raw mut current) }, "asking for the current context")?;
    Ok(current as usize)
}

/// Restores the previous context and capture mode when dropped.
#[must_use]
pub(crate) struct Entered {
    /// The address of the context to restore, 0 for none; `None` if there is nothing to restore.
    before: Option<usize>,
    /// The capture mode to restore.
    capture: CaptureMode,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: the caller had made this context current and keeps it alive while it is
            // current. 0 means that the thread's stack of contexts was empty and becomes empty
            // again.
            unsafe { sys::cuCtxSetCurrent(before as CUcontext) };
        }
        // It failed only if the driver is shutting down.
        let _ = exchange_capture_mode(self.capture);
    }
}

/// Wraps a value of cudarc whose drop makes its own context current. Dropping the wrapper restores
/// the caller's context.
pub(crate) struct Restoring<T> {
    // The order matters: the value is dropped before the guard.
    value: T,
    entered: Option<Entered>,
}

impl<T> Restoring<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value, entered: None }
    }
}

impl<T> Deref for Restoring<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for Restoring<T> {
    fn drop(&mut self) {
        self.entered = keep().ok();
    }
}
