//! A pool of helper threads.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex};
use std::thread;

use flashrnn_core::{Error, Result};

use super::board::{Board, Call, Caller};
use crate::memory::lock;

/// Helper threads, which sleep while there is no call.
#[derive(Debug)]
pub(crate) struct Pool {
    board: Arc<Board>,
    /// The process that owns the threads. A forked child has none of them.
    process: u32,
}

impl Pool {
    /// The maximum number of threads of a pool.
    pub const MAX_THREADS: usize = 1024;

    /// Starts a pool for calls of `threads` threads, including the caller.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if `threads` is not 1 to [`Self::MAX_THREADS`], [`Error::Device`]
    /// if a thread cannot be started.
    pub fn start(threads: usize) -> Result<Self> {
        if !(1..=Self::MAX_THREADS).contains(&threads) {
            let got = threads.to_string();
            return Err(Error::InvalidProblem { option: "threads", got, want: "1 to 1024" });
        }
        let pool = Self { board: Arc::new(Board::new(threads - 1)), process: process() };
        for me in 0..threads - 1 {
            let board = pool.board.clone();
            let builder = thread::Builder::new().name(format!("flashrnn-{me}"));
            // If this fails, dropping the pool ends the threads that have started.
            builder.spawn(move || board.help(me)).map_err(|e| {
                Error::device_because(format!("could not start {threads} threads"), e)
            })?;
        }
        Ok(pool)
    }

    /// Returns the pool shared by all backends that have no pool of their own. The first use in a
    /// process starts it.
    ///
    /// # Errors
    /// Same as [`Self::start`].
    pub fn global() -> Result<Arc<Self>> {
        static GLOBAL: Mutex<Option<Arc<Pool>>> = Mutex::new(None);
        let mut global = lock(&GLOBAL);
        match &*global {
            Some(pool) if pool.process == process() => Ok(pool.clone()),
            _ => Ok(global.insert(Arc::new(Self::start(default_threads())?)).clone()),
        }
    }

    /// Returns the maximum number of threads of a call, including the caller.
    pub fn threads(&self) -> usize {
        self.board.helpers() + 1
    }

    /// Calls `work(0)` on this thread, and `work(member)` on idle helpers for members 1 to
    /// `members - 1`, each at most once. `work(0)` must finish the call even if no helper comes.
    ///
    /// # Panics
    /// If `work` panics on any thread, once all threads have left the call.
    pub fn run(&self, members: usize, work: &(dyn Fn(usize) + Sync)) {
        if members <= 1 || self.board.helpers() == 0 || self.process != process() {
            return work(0);
        }
        let caller = Caller::enter(&self.board);
        // Other callers are working too. All callers and their helpers together should not
        // outnumber the pool.
        let helpers = self.board.helpers().saturating_sub(caller.others).min(members - 1);
        let call = Call::new(work, helpers + 1);
        // Dropping this closes the call, even if the work panics.
        let open = if helpers > 0 { self.board.open(&call) } else { None };
        if open.is_some() {
            self.board.wake(helpers);
        }
        work(0);
        drop(open);
        if let Some(panic) = call.into_panic() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.board.stop();
    }
}

/// Returns the default number of threads: the environment variable `RAYON_NUM_THREADS` if it is a
/// positive number, or else the parallelism that the system offers to this process.
pub(crate) fn default_threads() -> usize {
    let requested = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok());
    requested.filter(|&n| n > 0).unwrap_or_else(|| {
        thread::available_parallelism().map_or(1, usize::from).min(Pool::MAX_THREADS)
    })
}

/// Returns the id of this process on systems where processes can fork, or else 0.
fn process() -> u32 {
    if cfg!(unix) { std::process::id() } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// Counts to `n` on all threads that join. Returns the count and the number of threads.
    fn count(pool: &Pool, n: usize) -> (usize, usize) {
        let (next, done, members) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        pool.run(pool.threads(), &|_| {
            members.fetch_add(1, SeqCst);
            while next.fetch_add(1, SeqCst) < n {
                done.fetch_add(1, SeqCst);
            }
        });
        (done.into_inner(), members.into_inner())
    }

    #[test]
    fn a_call_is_complete_however_many_helpers_join() {
        for threads in [1, 2, 5] {
            let pool = Pool::start(threads).unwrap();
            for _ in 0..300 {
                let (done, members) = count(&pool, 100);
                assert_eq!(done, 100);
                assert!((1..=threads).contains(&members));
            }
        }
    }

    #[test]
    fn callers_do_not_disturb_each_other() {
        let pool = Pool::start(4).unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..200).for_each(|_| assert_eq!(count(&pool, 50).0, 50)));
            }
        });
    }

    #[test]
    fn nested_calls_finish() {
        let pool = Pool::start(3).unwrap();
        let done = AtomicUsize::new(0);
        pool.run(3, &|_| {
            done.fetch_add(count(&pool, 10).0, SeqCst);
        });
        assert!(done.into_inner().is_multiple_of(10));
    }

    #[test]
    fn helpers_join() {
        let pool = Pool::start(2).unwrap();
        let joined = AtomicBool::new(false);
        pool.run(2, &|me| {
            joined.fetch_or(me == 1, SeqCst);
            while !joined.load(SeqCst) {
                thread::yield_now();
            }
        });
    }

    #[test]
    fn a_panic_of_any_member_reaches_the_caller() {
        let pool = Pool::start(2).unwrap();
        for panicking in 0..2 {
            let joined = AtomicBool::new(false);
            let run = || {
                pool.run(2, &|me| {
                    joined.fetch_or(me == 1, SeqCst);
                    while !joined.load(SeqCst) {
                        thread::yield_now();
                    }
                    assert!(me != panicking, "this member panics");
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            assert_eq!(count(&pool, 10).0, 10);
        }
    }

    /// If several helpers panic with payloads that panic when dropped, the caller receives one
    /// payload and does not hang.
    #[test]
    fn payloads_that_panic_when_dropped_do_not_hang_the_caller() {
        struct Payload;
        impl Drop for Payload {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let pool = Pool::start(4).unwrap();
        let joined = AtomicUsize::new(0);
        let run = || {
            pool.run(4, &|me| {
                joined.fetch_add(1, SeqCst);
                while joined.load(SeqCst) < 4 {
                    thread::yield_now();
                }
                if me > 0 {
                    std::panic::panic_any(Payload);
                }
            });
        };
        let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("a helper panics");
        std::mem::forget(panic);
        assert_eq!(count(&pool, 10).0, 10);
    }

    #[test]
    fn invalid_numbers_of_threads_are_errors() {
        for threads in [0, 1025, 100_000] {
            assert!(matches!(
                Pool::start(threads),
                Err(Error::InvalidProblem { option: "threads", .. })
            ));
        }
    }
}
