//! Threads that compile kernels in parallel.

use std::thread::{Builder, Scope, ScopedJoinHandle};

use flashrnn_core::{Error, Result};

/// Runs `work` on a new thread.
///
/// # Errors
/// [`Error::Device`] if the system cannot start another thread.
pub(crate) fn spawn<'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> Result<R> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<R>>> {
    let started = Builder::new().spawn_scoped(scope, work);
    started.map_err(|e| Error::device_because("could not start a thread that compiles kernels", e))
}

/// Waits for a thread started by [`spawn`] and returns its result.
pub(crate) fn join<R>(thread: Result<ScopedJoinHandle<'_, Result<R>>>) -> Result<R> {
    thread?.join().unwrap_or_else(|_| Err(Error::device("a thread that compiles kernels panicked")))
}
