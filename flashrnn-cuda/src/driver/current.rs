//! The current CUDA context of a thread. Every call makes the device's context current and, before
//! it returns, restores the caller's.

use std::ops::Deref;
use std::ptr;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUcontext};
use flashrnn_core::Result;

use crate::driver::check;

/// Makes `context` current on this thread until the guard is dropped. The same thread must drop it.
pub(crate) fn enter(context: &CudaContext) -> Result<Entered> {
    let before = current()?;
    if before == context.cu_ctx() as usize {
        return Ok(Entered { before: None });
    }
    // SAFETY: the context is alive as long as the reference to it.
    check(unsafe { sys::cuCtxSetCurrent(context.cu_ctx()) }, "entering the device's context")?;
    Ok(Entered { before: Some(before) })
}

/// Returns a guard that restores the context that is current now, around calls of cudarc, which
/// make their own context current.
pub(crate) fn keep() -> Result<Entered> {
    Ok(Entered { before: Some(current()?) })
}

/// Returns the address of the thread's current context, 0 for none.
fn current() -> Result<usize> {
    let mut current = ptr::null_mut();
    // SAFETY: the pointer is to a handle that lives through the call.
    check(unsafe { sys::cuCtxGetCurrent(&raw mut current) }, "asking for the current context")?;
    Ok(current as usize)
}

/// Restores the context that was current before, when dropped.
#[must_use]
pub(crate) struct Entered {
    /// The address of the context to restore, 0 for none; `None` if it never stopped being current.
    before: Option<usize>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: the caller had made this context current and keeps it alive as long as it is.
            // With no context, the thread's stack of contexts was empty and becomes empty again.
            unsafe { sys::cuCtxSetCurrent(before as CUcontext) };
        }
    }
}

/// Wraps a value of cudarc's whose drop makes its own context current. Dropping the wrapper
/// restores the caller's context.
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
