//! The CUDA context that is current on a thread: every call enters the device's and leaves the
//! caller's as it was.

use std::ops::Deref;
use std::ptr;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUcontext};
use flashrnn_core::Result;

use crate::driver::check;

/// Makes `context` current on this thread until the guard is dropped, by the same thread.
pub(crate) fn enter(context: &CudaContext) -> Result<Entered> {
    let before = current()?;
    if before == context.cu_ctx() as usize {
        return Ok(Entered { before: None });
    }
    // SAFETY: the context is alive as long as the reference to it.
    check(unsafe { sys::cuCtxSetCurrent(context.cu_ctx()) }, "entering the device's context")?;
    Ok(Entered { before: Some(before) })
}

/// Leaves the thread's context as it is, for calls of cudarc, which make their own current.
pub(crate) fn keep() -> Result<Entered> {
    Ok(Entered { before: Some(current()?) })
}

/// The address of the thread's context, 0 for none.
fn current() -> Result<usize> {
    let mut current = ptr::null_mut();
    // SAFETY: the pointer is to a handle that lives through the call.
    check(unsafe { sys::cuCtxGetCurrent(&raw mut current) }, "asking for the current context")?;
    Ok(current as usize)
}

/// Makes the context current again that was so before, when it is dropped.
#[must_use]
pub(crate) struct Entered {
    /// The address of the context to come back to, 0 for none; absent where it is still current.
    before: Option<usize>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: the caller had made this context current, and keeps it alive while it is.
            // Without one the thread's stack of contexts was empty, and becomes so again.
            unsafe { sys::cuCtxSetCurrent(before as CUcontext) };
        }
    }
}

/// A value of cudarc's that makes its own context current when it is dropped; here the caller's is
/// current again afterwards.
pub(crate) struct Restoring<T> {
    // In this order: the value is dropped before the guard.
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
