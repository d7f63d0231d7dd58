//! Threads that go through the time steps of one head together.
//!
//! Each step's blocks must all be done before the next step begins. A barrier among a fixed set of
//! threads would deadlock where a pool is busy and some of them never start, so nothing here waits
//! for a thread that has not begun: members claim blocks, each first those of its own range (whose
//! part of R its cache holds) and then the others', and whoever finishes a step's last block opens
//! the next step. One member alone gets through everything; a member that comes late joins in; a
//! member waits only for blocks that somebody is working on right now.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that threads signal by, on cache lines of its own.
#[repr(C, align(64))]
pub(crate) struct Signal(AtomicU64, [u8; 120]);

impl Signal {
    pub const fn zero() -> Self {
        Self(AtomicU64::new(0), [0; 120])
    }
}

/// The state of one head's team.
pub(crate) struct Team<'a> {
    steps: u64,
    blocks: usize,
    /// A member's range: the step in the upper half, the next block of the range to claim in the
    /// lower.
    claims: &'a [Signal],
    step: &'a AtomicU64,
    /// Blocks done since the beginning.
    done: &'a AtomicU64,
}

/// Opens the last step where a block panics, so that the others stop waiting for it.
struct Panicking<'a>(&'a Team<'a>);

impl Drop for Panicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.step.store(self.0.steps, Ordering::Release);
        }
    }
}

impl<'a> Team<'a> {
    /// How many signals a team of `members` has.
    pub fn signals(members: usize) -> usize {
        members + 2
    }

    /// A team with [`Self::signals`] signals, all zero.
    pub fn new(steps: usize, blocks: usize, signals: &'a [Signal]) -> Self {
        let [step, done, claims @ ..] = signals else {
            unreachable!("a team has two signals beside its members'")
        };
        Self { steps: steps as u64, blocks, claims, step: &step.0, done: &done.0 }
    }

    /// Works as member `me` until all steps are done: `work(step, block)`.
    pub fn join(&self, me: usize, mut work: impl FnMut(usize, usize)) {
        let _panicking = Panicking(self);
        let mut spins = 0_u32;
        loop {
            let opened = self.step.load(Ordering::Acquire);
            if opened >= self.steps {
                return;
            }
            let step = opened as usize;
            for range in (me..self.claims.len()).chain(0..me) {
                while let Some(block) = self.claim(range, step) {
                    work(step, block);
                    // The last to finish has synchronised with all others, and with it whoever sees
                    // its new step.
                    if self.done.fetch_add(1, Ordering::AcqRel) + 1
                        == (opened + 1) * self.blocks as u64
                    {
                        self.open(opened + 1);
                    }
                    spins = 0;
                }
            }
            while self.step.load(Ordering::Relaxed) == opened {
                spins += 1;
                if spins < 20_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
        }
    }

    fn open(&self, step: u64) {
        for claim in self.claims {
            claim.0.store(step << 32, Ordering::Relaxed);
        }
        self.step.store(step, Ordering::Release);
    }

    /// A block of `range` that nobody has claimed in this step.
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

/// The `i`th of `n` blocks, from the front in even steps and from the back in odd ones: what the
/// cache still holds of the last step's end is used first, where going round and round would have
/// thrown it out.
pub(crate) fn back_and_forth(step: usize, i: usize, n: usize) -> usize {
    if step.is_multiple_of(2) { i } else { n - 1 - i }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn signals(members: usize) -> Vec<Signal> {
        (0..Team::signals(members)).map(|_| Signal::zero()).collect()
    }

    fn every_block_once_and_in_step_order(members: usize, joining: usize) {
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
                                "a block of an earlier step is not done"
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
    fn all_members_together() {
        every_block_once_and_in_step_order(3, 3);
    }

    #[test]
    fn one_member_alone() {
        every_block_once_and_in_step_order(3, 1);
    }

    #[test]
    fn more_members_than_blocks() {
        every_block_once_and_in_step_order(9, 9);
    }

    #[test]
    fn a_panic_releases_the_others() {
        let signals = signals(2);
        let team = Team::new(10, 4, &signals);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| team.join(1, |_, _| std::thread::yield_now()));
            let panicked = scope.spawn(|| team.join(0, |_, _| panic!("a cell panics"))).join();
            // The other member may have done everything before the first even began.
            drop(panicked);
            assert!(other.join().is_ok());
        });
    }
}
