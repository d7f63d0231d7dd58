//! Work that is shared among the threads of a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::threads::pool::Pool;
use crate::threads::subnormals::Subnormals;

/// The threads of a plan's calls, and the mode in which they compute.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    pub pool: Arc<Pool>,
    pub subnormals: Subnormals,
}

impl Workers {
    /// The calling thread and no other, for tests.
    #[cfg(test)]
    pub fn alone() -> Self {
        let pool = Pool::start(1).expect("no thread is started");
        Self { pool: Arc::new(pool), subnormals: Subnormals::Keep }
    }

    /// How many threads may work on a call, the caller among them.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// [`Pool::run`] with every member in the mode for subnormal numbers.
    pub fn run(&self, members: usize, work: impl Fn(usize) + Sync) {
        self.pool.run(members, &|me| {
            let _mode = self.subnormals.enter();
            work(me);
        });
    }

    /// Calls `work(member, i)` for every `i` below `n`, each on one of up to `members` threads.
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
