//! The open calls of a pool, and the protocol by which helpers join them.
//!
//! A slot holds an open call and counts the helpers that are looking at it:
//!
//! ```text
//! helper: visitors += 1; read call; if not null, work on it; visitors -= 1
//! caller: write call; wake helpers; work; write null; wait until visitors = 0
//! ```
//!
//! All these accesses are sequentially consistent. In their total order, a helper that the waiting
//! caller does not count among the visitors reads the slot after the null was written, so it never
//! sees a call that has ended.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::*};
use std::sync::{Mutex, OnceLock};
use std::thread::{self, Thread};

use crate::memory::lock;

/// How many times a helper yields its core and looks for work again before it sleeps.
const IDLE_YIELDS: usize = 32;
/// How many times a caller checks for visitors before it starts to yield its core.
const CLOSING_SPINS: u32 = 2_000;

/// The state that callers and helpers share.
#[derive(Debug)]
pub(super) struct Board {
    /// One per helper: every open call has at least one helper assigned.
    slots: Box<[Slot]>,
    helpers: Box<[Helper]>,
    /// The number of threads that are inside [`Pool::run`](super::Pool::run).
    callers: AtomicUsize,
    stopping: AtomicBool,
}

/// A place for an open call, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot {
    taken: AtomicBool,
    /// The open call, null if there is none. [`OpenCall`] guards its lifetime.
    call: AtomicPtr<Call<'static>>,
    visitors: AtomicUsize,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Helper {
    asleep: AtomicBool,
    /// Set before the helper first sleeps.
    thread: OnceLock<Thread>,
}

impl Board {
    pub fn new(helpers: usize) -> Self {
        Self {
            slots: (0..helpers).map(|_| Slot::default()).collect(),
            helpers: (0..helpers).map(|_| Helper::default()).collect(),
            callers: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    /// Returns the number of helper threads.
    pub fn helpers(&self) -> usize {
        self.helpers.len()
    }

    /// Runs helper `me`: joins calls until [`Self::stop`].
    pub fn help(&self, me: usize) {
        let Helper { asleep, thread } = &self.helpers[me];
        thread.get_or_init(thread::current);
        let mut yields = 0;
        while !self.stopping.load(SeqCst) {
            if self.join_any() {
                yields = 0;
            } else if yields < IDLE_YIELDS {
                yields += 1;
                thread::yield_now();
            } else {
                asleep.store(true, SeqCst);
                // A call opened before the store is found here; a later one wakes this thread.
                let found = self.join_any() || self.stopping.load(SeqCst);
                while !found && asleep.load(SeqCst) {
                    thread::park();
                }
                asleep.store(false, SeqCst);
                yields = 0;
            }
        }
    }

    /// Joins the first call that needs another member. Returns false if there is none.
    fn join_any(&self) -> bool {
        self.slots.iter().any(|slot| {
            if slot.call.load(SeqCst).is_null() {
                return false;
            }
            slot.visitors.fetch_add(1, SeqCst);
            let call = slot.call.load(SeqCst);
            // SAFETY: if not null, `OpenCall` keeps the call alive while this thread is a visitor.
            let joined = unsafe { call.as_ref() }.is_some_and(Call::join);
            slot.visitors.fetch_sub(1, SeqCst);
            joined
        })
    }

    /// Lets helpers join `call` until the result is dropped. Returns None if all slots are taken.
    pub fn open<'a>(&'a self, call: &'a Call<'_>) -> Option<OpenCall<'a>> {
        let slot = self.slots.iter().find(|slot| !slot.taken.swap(true, SeqCst))?;
        slot.call.store(std::ptr::from_ref(call).cast_mut().cast(), SeqCst);
        Some(OpenCall(slot))
    }

    /// Wakes up to `n` sleeping helpers.
    pub fn wake(&self, n: usize) {
        let asleep = self.helpers.iter().filter(|helper| helper.asleep.swap(false, SeqCst));
        asleep.filter_map(|helper| helper.thread.get()).take(n).for_each(Thread::unpark);
    }

    /// Ends the helper threads once they have left their calls.
    pub fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.wake(usize::MAX);
    }
}

/// A call that helpers may join.
pub(super) struct Call<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    members: usize,
    /// The number of members that have joined so far, including the caller. May exceed `members`.
    joined: AtomicUsize,
    /// The payload of the first panic of a helper.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl<'a> Call<'a> {
    /// Makes a call of `members` threads. The caller is member 0.
    pub fn new(work: &'a (dyn Fn(usize) + Sync), members: usize) -> Self {
        Self { work, members, joined: AtomicUsize::new(1), panic: Mutex::default() }
    }

    /// Joins as another member and does its work. Returns false if the call has all its members.
    fn join(&self) -> bool {
        if self.joined.load(Relaxed) >= self.members {
            return false;
        }
        let me = self.joined.fetch_add(1, Relaxed);
        if me >= self.members {
            return false;
        }
        // Unwind safety: the caller panics too, so unfinished results are never used.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.work)(me))) {
            let mut first = lock(&self.panic);
            match &*first {
                None => *first = Some(panic),
                // Leaked: dropping a payload may panic, and the caller waits for this thread.
                Some(_) => std::mem::forget(panic),
            }
        }
        true
    }

    /// Returns the payload of the first panic of a helper, if there was one.
    pub fn into_panic(self) -> Option<Box<dyn Any + Send>> {
        self.panic.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Keeps a call open.
pub(super) struct OpenCall<'a>(&'a Slot);

impl Drop for OpenCall<'_> {
    /// Closes the call and waits for the helpers inside it, even while the caller panics.
    fn drop(&mut self) {
        self.0.call.store(null_mut(), SeqCst);
        let mut spins = 0_u32;
        while self.0.visitors.load(SeqCst) > 0 {
            spins += 1;
            if spins < CLOSING_SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        self.0.taken.store(false, SeqCst);
    }
}

/// Counts this thread among a board's callers.
pub(super) struct Caller<'a> {
    board: &'a Board,
    /// The number of other callers when this one arrived.
    pub others: usize,
}

impl<'a> Caller<'a> {
    pub fn enter(board: &'a Board) -> Self {
        Self { board, others: board.callers.fetch_add(1, Relaxed) }
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.board.callers.fetch_sub(1, Relaxed);
    }
}
