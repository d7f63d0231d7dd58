//! Lets a team of threads advance one head through the time steps.
//!
//! All blocks of a step must be done before the next step begins. A barrier among a fixed set of
//! threads would deadlock when the pool is busy and some of them never start, so no member waits
//! for a thread that has not begun. Instead members claim blocks, first from their own range (whose
//! part of R is in their core's cache), then from the others'. The member that finishes the last
//! block of a step opens the next step. A single member can complete all steps, late members can
//! join in, and a member waits only for blocks that another member is computing.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many times a member checks for the next step before it starts to yield its core.
const WAITING_SPINS: u32 = 20_000;

/// A counter on cache lines of its own.
#[repr(C, align(64))]
pub(super) struct Signal(AtomicU64, [u8; 120]);

impl Signal {
    pub const fn zero() -> Self {
        Self(AtomicU64::new(0), [0; 120])
    }
}

/// The progress of a team through one head's steps.
pub(super) struct Team<'a> {
    steps: u64,
    blocks: usize,
    /// The claims on each member's range of blocks: the step in the upper 32 bits, the number of
    /// claimed blocks in the lower ones.
    claims: &'a [Signal],
    /// The current step.
    step: &'a AtomicU64,
    /// The blocks done in all steps so far.
    done: &'a AtomicU64,
}

/// Ends all steps if a block panics, so that the other members stop waiting for that block.
struct ReleaseOnPanic<'a>(&'a Team<'a>);

impl Drop for ReleaseOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.step.store(self.0.steps, Ordering::Release);
        }
    }
}

impl<'a> Team<'a> {
    /// Returns the number of signals of a team of `members`.
    pub fn signals(members: usize) -> usize {
        members + 2
    }

    /// Makes a team with [`Self::signals`] signals, all zero.
    pub fn new(steps: usize, blocks: usize, signals: &'a [Signal]) -> Self {
        let [step, done, claims @ ..] = signals else {
            unreachable!("a team has two signals besides one per member")
        };
        Self { steps: steps as u64, blocks, claims, step: &step.0, done: &done.0 }
    }

    /// Calls `work(step, block)` as member `me` until all steps are done.
    pub fn join(&self, me: usize, mut work: impl FnMut(usize, usize)) {
        let _release = ReleaseOnPanic(self);
        let mut spins = 0_u32;
        loop {
            let current = self.step.load(Ordering::Acquire);
            if current >= self.steps {
                return;
            }
            let step = current as usize;
            for range in (me..self.claims.len()).chain(0..me) {
                while let Some(block) = self.claim(range, step) {
                    work(step, block);
                    // The member that finishes last has synchronised with all others. Opening the
                    // next step synchronises with each member that sees it.
                    let done = self.done.fetch_add(1, Ordering::AcqRel) + 1;
                    if done == (current + 1) * self.blocks as u64 {
                        self.open(current + 1);
                    }
                    spins = 0;
                }
            }
            while self.step.load(Ordering::Relaxed) == current {
                spins += 1;
                if spins < WAITING_SPINS {
                    std::hint::spin_loop()
                } else {
                    std::thread::yield_now()
                }
            }
        }
    }

    /// Opens a step.
    fn open(&self, step: u64) {
        for claim in self.claims {
            claim.0.store(step << 32, Ordering::Relaxed);
        }
        self.step.store(step, Ordering::Release);
    }

    /// Claims a block of step `step` from the range of member `range`. Returns `None` if all blocks
    /// of that range are claimed.
    fn claim(&self, range: usize, step: usize) -> Option<usize> {
        let members = self.claims.len();
        let (first, end) = (range * self.blocks / members, (range + 1) * self.blocks / members);
        let claim = &self.claims[range].0;
        let mut seen = claim.load(Ordering::Relaxed);
        loop {
            let next = (seen & 0xffff_ffff) as usize;
            if (seen >> 32) as usize != step || next >= end - first {
                return None;
            }
            match claim.compare_exchange_weak(seen, seen + 1, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Some(first + back_and_forth(step, next, end - first)),
                Err(now) => seen = now,
            }
        }
    }
}

/// Returns the `i`th of `n` blocks in a step's order: forwards in even steps, backwards in odd
/// ones. Each step thus begins with the blocks that the cache still holds from the previous step.
/// With the same order in every step, those blocks would have been evicted.
pub(super) fn back_and_forth(step: usize, i: usize, n: usize) -> usize {
    if step.is_multiple_of(2) { i } else { n - 1 - i }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn signals(members: usize) -> Vec<Signal> {
        (0..Team::signals(members)).map(|_| Signal::zero()).collect()
    }

    fn computes_every_block_once_in_step_order(members: usize, joining: usize) {
        let (steps, blocks) = (200, 7);
        let signals = signals(members);
        let team = Team::new(steps, blocks, &signals);
        let counts: Vec<AtomicU32> = (0..steps * blocks).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for me in 0..joining {
                let (team, counts) = (&team, &counts);
                scope.spawn(move || {
                    team.join(me, |step, block| {
                        for earlier in &counts[..step * blocks] {
                            assert_eq!(
                                earlier.load(Ordering::Relaxed),
                                1,
                                "a block of an earlier step is missing"
                            );
                        }
                        counts[step * blocks + block].fetch_add(1, Ordering::Relaxed);
                    });
                });
            }
        });
        assert!(counts.iter().all(|n| n.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn all_members_join() {
        computes_every_block_once_in_step_order(3, 3);
    }

    #[test]
    fn a_single_member_completes_all_steps() {
        computes_every_block_once_in_step_order(3, 1);
    }

    #[test]
    fn a_team_may_have_more_members_than_blocks() {
        computes_every_block_once_in_step_order(9, 9);
    }

    #[test]
    fn a_panic_releases_the_other_members() {
        let signals = signals(2);
        let team = Team::new(10, 4, &signals);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| team.join(1, |_, _| std::thread::yield_now()));
            let panicked = scope.spawn(|| team.join(0, |_, _| panic!("a cell panics"))).join();
            // The other member may have completed all steps before this one started.
            drop(panicked);
            assert!(other.join().is_ok());
        });
    }
}
