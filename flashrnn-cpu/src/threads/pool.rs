//! The threads that help with a call.
//!
//! The thread that makes a call works on it and could do all of it alone. Helpers join while there
//! is work and leave when they find none. At its end the call is closed: helpers that come too late
//! see nothing of it, and the caller waits for those that are inside, each of which is busy with
//! this call's work. So nobody ever runs another job while waiting, and a call needs neither idle
//! threads nor memory.
//!
//! A slot says which call is open and how many helpers are looking at it:
//!
//! ```text
//! helper: visitors += 1; read call; if not null, work on it; visitors -= 1
//! caller: write call; wake helpers; work; write null; wait until visitors = 0
//! ```
//!
//! In the one order of all these accesses (they are sequentially consistent) a helper that the
//! caller does not see among the visitors reads the call after the null was written.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};

use flashrnn_core::{Error, Result};

/// How often a helper looks for work, yielding its core in between, before it sleeps.
const LOOKS: usize = 32;

/// Helper threads, which sleep when there is no call.
#[derive(Debug)]
pub(crate) struct Pool {
    board: Arc<Board>,
    /// The process that has the threads: after a fork, the child has none of them.
    process: u32,
}

impl Pool {
    /// The most threads a pool may have.
    pub const MAX_THREADS: usize = 1024;

    /// A pool for calls of `threads` threads, the caller among them.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] if `threads` is not 1 to [`Self::MAX_THREADS`], [`Error::Device`]
    /// if they can't be started.
    pub fn start(threads: usize) -> Result<Self> {
        if !(1..=Self::MAX_THREADS).contains(&threads) {
            let got = threads.to_string();
            return Err(Error::InvalidProblem { option: "threads", got, want: "1 to 1024" });
        }
        let pool = Self { board: Arc::new(Board::new(threads - 1)), process: process() };
        for me in 0..threads - 1 {
            let board = pool.board.clone();
            let builder = thread::Builder::new().name(format!("flashrnn-{me}"));
            // On an error the pool is dropped, and the threads already started end.
            builder.spawn(move || board.help(me)).map_err(|e| {
                Error::device_because(format!("could not start {threads} threads"), e)
            })?;
        }
        Ok(pool)
    }

    /// The pool of all backends that have none of their own, started when it is first needed in
    /// this process.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn global() -> Result<Arc<Self>> {
        static GLOBAL: Mutex<Option<Arc<Pool>>> = Mutex::new(None);
        let mut global = GLOBAL.lock().unwrap_or_else(PoisonError::into_inner);
        match &*global {
            Some(pool) if pool.process == process() => Ok(pool.clone()),
            _ => Ok(global.insert(Arc::new(Self::start(default_threads())?)).clone()),
        }
    }

    /// How many threads may work on a call.
    pub fn threads(&self) -> usize {
        self.board.helpers.len() + 1
    }

    /// Calls `work(0)` on this thread, and on helpers that have time `work(member)` for members 1
    /// to `members - 1`, each at most once. `work(0)` must see to it that everything is done even
    /// if nobody else comes.
    ///
    /// # Panics
    /// If `work` panics on any thread, after all have left it.
    pub fn run(&self, members: usize, work: &(dyn Fn(usize) + Sync)) {
        if members <= 1 || self.board.helpers.is_empty() || self.process != process() {
            return work(0);
        }
        let caller = Caller::enter(&self.board);
        // Other callers work too, so that no more threads than the pool's are busy.
        let helpers = self.board.helpers.len().saturating_sub(caller.others).min(members - 1);
        let call = Call {
            work,
            members: helpers + 1,
            joined: AtomicUsize::new(1),
            panic: Mutex::default(),
        };
        // Dropped, and so closed, also if the work panics.
        let open = if helpers > 0 { self.board.open(&call) } else { None };
        if open.is_some() {
            self.board.wake(helpers);
        }
        work(0);
        drop(open);
        let panic = call.panic.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.board.ends.store(true, SeqCst);
        self.board.wake(usize::MAX);
    }
}

/// How many threads a call uses if nobody says otherwise: what the environment variable
/// `RAYON_NUM_THREADS` says, which programs that use rayon know, else what the system offers to
/// this process.
pub(crate) fn default_threads() -> usize {
    let said =
        std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
    let offered = || thread::available_parallelism().map_or(1, usize::from).min(Pool::MAX_THREADS);
    said.unwrap_or_else(offered)
}

/// This process, where processes can fork.
fn process() -> u32 {
    if cfg!(unix) { std::process::id() } else { 0 }
}

/// What callers and helpers share.
#[derive(Debug)]
struct Board {
    /// As many as helpers: each open call has one at least.
    slots: Box<[Slot]>,
    helpers: Box<[Helper]>,
    /// Threads that have calls under way.
    callers: AtomicUsize,
    ends: AtomicBool,
}

/// A place for an open call.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot {
    taken: AtomicBool,
    /// The call, whose lifetime `Open` guards; null where none is open.
    call: AtomicPtr<Call<'static>>,
    visitors: AtomicUsize,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Helper {
    asleep: AtomicBool,
    /// Set before it first sleeps.
    thread: OnceLock<Thread>,
}

/// A call that helpers may join.
struct Call<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    members: usize,
    /// Members so far; it may exceed `members`.
    joined: AtomicUsize,
    /// What a helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Call<'_> {
    /// Works as one more member; false if there are enough.
    fn join(&self) -> bool {
        if self.joined.load(Relaxed) >= self.members {
            return false;
        }
        let me = self.joined.fetch_add(1, Relaxed);
        if me >= self.members {
            return false;
        }
        // Nobody looks at what the work has left half done: the caller panics too.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.work)(me))) {
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            match &*first {
                None => *first = Some(panic),
                // Not dropped: what it panicked with may panic when it is, and the caller waits for
                // this thread to leave.
                Some(_) => std::mem::forget(panic),
            }
        }
        true
    }
}

impl Board {
    fn new(helpers: usize) -> Self {
        Self {
            slots: (0..helpers).map(|_| Slot::default()).collect(),
            helpers: (0..helpers).map(|_| Helper::default()).collect(),
            callers: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
        }
    }

    /// The life of a helper.
    fn help(&self, me: usize) {
        let Helper { asleep, thread } = &self.helpers[me];
        thread.get_or_init(thread::current);
        let mut looks = 0;
        while !self.ends.load(SeqCst) {
            if self.work() {
                looks = 0;
            } else if looks < LOOKS {
                looks += 1;
                thread::yield_now();
            } else {
                asleep.store(true, SeqCst);
                // Whoever opens a call from here on sees that this thread sleeps.
                let woken = self.work() || self.ends.load(SeqCst);
                while !woken && asleep.load(SeqCst) {
                    thread::park();
                }
                asleep.store(false, SeqCst);
                looks = 0;
            }
        }
    }

    /// Works on the first call that wants another member; false if there is none.
    fn work(&self) -> bool {
        self.slots.iter().any(|slot| {
            if slot.call.load(SeqCst).is_null() {
                return false;
            }
            slot.visitors.fetch_add(1, SeqCst);
            let call = slot.call.load(SeqCst);
            // SAFETY: not null while this thread is a visitor, so `Open` keeps the call alive until
            // it is none.
            let worked = unsafe { call.as_ref() }.is_some_and(Call::join);
            slot.visitors.fetch_sub(1, SeqCst);
            worked
        })
    }

    /// Lets helpers join `call` until the result is dropped; None if there are too many calls.
    fn open<'a>(&'a self, call: &'a Call<'_>) -> Option<Open<'a>> {
        let slot = self.slots.iter().find(|slot| !slot.taken.swap(true, SeqCst))?;
        slot.call.store(std::ptr::from_ref(call).cast_mut().cast(), SeqCst);
        Some(Open(slot))
    }

    /// Wakes up to `n` helpers that sleep.
    fn wake(&self, n: usize) {
        let asleep = self.helpers.iter().filter(|helper| helper.asleep.swap(false, SeqCst));
        asleep.filter_map(|helper| helper.thread.get()).take(n).for_each(Thread::unpark);
    }
}

/// An open call.
struct Open<'a>(&'a Slot);

impl Drop for Open<'_> {
    /// Closes it, and waits for the helpers inside, also if the caller panics.
    fn drop(&mut self) {
        self.0.call.store(null_mut(), SeqCst);
        let mut spins = 0_u32;
        while self.0.visitors.load(SeqCst) > 0 {
            spins += 1;
            if spins < 2_000 { std::hint::spin_loop() } else { thread::yield_now() }
        }
        self.0.taken.store(false, SeqCst);
    }
}

/// A thread that has a call under way.
struct Caller<'a> {
    board: &'a Board,
    /// How many others there were when it came.
    others: usize,
}

impl<'a> Caller<'a> {
    fn enter(board: &'a Board) -> Self {
        Self { board, others: board.callers.fetch_add(1, Relaxed) }
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.board.callers.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts to `n` on as many threads as come.
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
    fn everything_is_done_whoever_comes() {
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
    fn many_callers_at_once() {
        let pool = Pool::start(4).unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..200).for_each(|_| assert_eq!(count(&pool, 50).0, 50)));
            }
        });
    }

    #[test]
    fn a_call_within_a_call_finishes() {
        let pool = Pool::start(3).unwrap();
        let done = AtomicUsize::new(0);
        pool.run(3, &|_| {
            done.fetch_add(count(&pool, 10).0, SeqCst);
        });
        assert!(done.into_inner().is_multiple_of(10));
    }

    #[test]
    fn helpers_do_come() {
        let pool = Pool::start(2).unwrap();
        let came = AtomicBool::new(false);
        pool.run(2, &|me| {
            came.fetch_or(me == 1, SeqCst);
            while !came.load(SeqCst) {
                thread::yield_now();
            }
        });
    }

    #[test]
    fn a_panic_of_any_member_reaches_the_caller() {
        let pool = Pool::start(2).unwrap();
        for panicking in 0..2 {
            let came = AtomicBool::new(false);
            let run = || {
                pool.run(2, &|me| {
                    came.fetch_or(me == 1, SeqCst);
                    while !came.load(SeqCst) {
                        thread::yield_now();
                    }
                    assert!(me != panicking, "this member panics");
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            assert_eq!(count(&pool, 10).0, 10);
        }
    }

    /// A payload that panics when it is dropped, from several helpers at once: one reaches the
    /// caller, and nobody is left waiting.
    #[test]
    fn panics_that_panic_when_dropped_leave_nobody_waiting() {
        struct Payload;
        impl Drop for Payload {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let pool = Pool::start(4).unwrap();
        let came = AtomicUsize::new(0);
        let run = || {
            pool.run(4, &|me| {
                came.fetch_add(1, SeqCst);
                while came.load(SeqCst) < 4 {
                    thread::yield_now();
                }
                if me > 0 {
                    std::panic::panic_any(Payload);
                }
            });
        };
        let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("what a helper panicked with");
        std::mem::forget(panic);
        assert_eq!(count(&pool, 10).0, 10);
    }

    #[test]
    fn too_many_threads_are_an_error() {
        for threads in [0, 1025, 100_000] {
            assert!(matches!(
                Pool::start(threads),
                Err(Error::InvalidProblem { option: "threads", .. })
            ));
        }
    }
}
