//! The threads of a plan's calls, in the plan's mode for subnormal numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::pool::Pool;
use super::subnormals::Subnormals;

/// A pool and the mode in which its threads compute a plan's calls.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    pub pool: Arc<Pool>,
    pub subnormals: Subnormals,
}

impl Workers {
    /// Makes workers that consist of the calling thread only.
    #[cfg(test)]
    pub fn single() -> Self {
        let pool = Pool::start(1).expect("no thread is started");
        Self { pool: Arc::new(pool), subnormals: Subnormals::Keep }
    }

    /// Returns the maximum number of threads of a call, including the caller.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `work` as [`Pool::run`] does, each member in the mode for subnormal numbers.
    pub fn run(&self, members: usize, work: impl Fn(usize) + Sync) {
        self.pool.run(members, &|me| {
            let _mode = self.subnormals.enter();
            work(me);
        });
    }

    /// Calls `work(member, i)` for every `i` below `n`, on up to `members` threads.
    pub fn for_each(&self, members: usize, n: usize, work: impl Fn(usize, usize) + Sync) {
        let next = AtomicUsize::new(0);
        self.run(members.min(n), |me| {
            loop {
                let i = next.fetch_add(1, Relaxed);
                if i >= n {
                    return;
                }
                work(me, i);
            }
        });
    }
}
