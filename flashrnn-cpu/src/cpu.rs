//! The handle of the CPU backend.

use std::sync::Arc;

use flashrnn_core::{Error, Result};

use crate::memory::WorkspacePool;
use crate::simd::Level;
use crate::threads::{Pool, Subnormals, Workers, default_threads};

/// The CPU backend. Heads and batch rows are distributed over threads, and units over SIMD lanes.
///
/// # Threads
/// The thread that makes a call works on it, and helper threads join if there is enough work. No
/// thread runs another job while it waits, so calls may be made while holding a lock, from rayon's
/// threads and from several threads at once. Concurrent callers divide the helpers among
/// themselves. Results do not depend on the number of threads.
///
/// A forked child process has no helpers. In the child, calls of plans made before the fork run on
/// the calling thread. Plans that the child makes with [`Cpu::new`], and backends that it makes
/// with [`Cpu::with_threads`], get new helpers. As with any library that uses locks, no thread may
/// be making a plan or a call while another forks the process.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub(crate) level: Level,
    subnormals: Subnormals,
    /// `None` selects the pool that all backends share.
    pool: Option<Arc<Pool>>,
    pub(crate) workspaces: WorkspacePool,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// The maximum number of threads of a backend.
    pub const MAX_THREADS: usize = Pool::MAX_THREADS;

    /// Makes a backend that uses the machine's best instruction set, and threads that all such
    /// backends share. The number of threads is the value of the environment variable
    /// `RAYON_NUM_THREADS` if that is a positive number, and otherwise the parallelism that the
    /// system offers to this process. The first [`plan`](flashrnn_core::Backend::plan) starts the
    /// threads, and fails if they cannot be started.
    #[must_use]
    pub fn new() -> Self {
        let level = Level::available().pop().unwrap_or(Level::Portable);
        Self {
            level,
            subnormals: Subnormals::default(),
            pool: None,
            workspaces: WorkspacePool::default(),
        }
    }

    /// Makes a backend whose calls use up to `threads` threads, 1 to [`Cpu::MAX_THREADS`]: the
    /// caller's and the backend's own helpers.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if `threads` is out of range, [`Error::Device`] if the threads
    /// cannot be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        Ok(Self { pool: Some(Arc::new(Pool::start(threads)?)), ..Self::new() })
    }

    /// Returns the backend with the given instruction set, one of [`Level::available`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this machine does not support it.
    pub fn with_level(self, level: Level) -> Result<Self> {
        if !Level::available().contains(&level) {
            return Err(Error::Unsupported {
                backend: "cpu",
                what: format!("the instruction set {}", level.name()),
                why: "this machine does not have it".into(),
            });
        }
        Ok(Self { level, ..self })
    }

    /// Returns the backend with the given handling of subnormal numbers. By default they are
    /// flushed to zero.
    #[must_use]
    pub fn with_subnormals(self, subnormals: Subnormals) -> Self {
        Self { subnormals, ..self }
    }

    /// Returns the maximum number of threads of a call, including the caller's.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(default_threads, |pool| pool.threads())
    }

    /// Returns the threads that run a plan's calls.
    pub(crate) fn workers(&self) -> Result<Workers> {
        let pool = self.pool.clone().map_or_else(Pool::global, Ok)?;
        Ok(Workers { pool, subnormals: self.subnormals })
    }
}
