//! How the work of a call is divided: into tasks (a head and some rows of the batch) and teams of
//! threads for a task.

/// The division of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Division {
    /// Into how many tasks the rows of a head are cut.
    pub tiles: usize,
    /// How many threads share a task, block by block.
    pub team: usize,
    /// How many heads of the same rows one thread takes through time together, step by step: a
    /// step's inputs of neighbouring heads share pages. A divisor of the number of heads.
    pub bundle: usize,
}

/// What a division depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub threads: usize,
    pub heads: usize,
    pub batch: usize,
    /// Blocks of units of a head.
    pub blocks: usize,
    /// Multiply-adds of a step of one row and head, in vectors: about as many cycles.
    pub row_step: usize,
    /// Bytes of a head's packed matrix.
    pub matrix: usize,
}

/// More rows would push R out of the cache.
const MAX_ROWS: usize = 64;
/// Fewer rows leave the product waiting for loads.
const MIN_ROWS: usize = 4;
/// A thread goes through a head's matrix of up to this size alone at each step, from its core's
/// second-level cache and in part from the third; larger ones are shared out.
pub(crate) const WHOLE: usize = 1 << 20;
/// Matrices of heads that go through time together stay in a core's second-level cache up to this
/// size of all of them.
const BUNDLE: usize = 512 << 10;
/// Cycles of work a member must have in a step to be worth the signals between members: where two
/// threads take as long as one.
const MIN_SHARE_CYCLES: usize = 1100;

impl Division {
    /// Whole tasks for each thread where they come out even and each thread can hold a head's
    /// matrix; else a team, whose members each hold a part of the matrix.
    pub fn new(w: Work) -> Self {
        let batch = w.batch.max(1);
        let least = batch.div_ceil(MAX_ROWS);
        let most = (batch / MIN_ROWS).max(least);
        let even = |tiles: usize| {
            let tasks = w.heads * tiles;
            tasks.is_multiple_of(w.threads) || tasks >= 4 * w.threads
        };
        if w.matrix <= WHOLE
            && let Some(tiles) = (least..=most).find(|&tiles| even(tiles))
        {
            let fits = (BUNDLE / w.matrix.max(1)).clamp(1, w.heads);
            let together = |&n: &usize| {
                let bundles = w.heads / n * tiles;
                w.heads.is_multiple_of(n)
                    && (bundles.is_multiple_of(w.threads) || bundles >= 4 * w.threads)
            };
            return Self { tiles, team: 1, bundle: (1..=fits).rev().find(together).unwrap_or(1) };
        }
        let step = batch.div_ceil(least) * w.row_step;
        let team = w.threads.min(w.blocks).min((step / MIN_SHARE_CYCLES).max(1));
        if team > 1 || w.threads == 1 {
            return Self { tiles: least, team, bundle: 1 };
        }
        // Too little for a team: a task for each thread, if need be of a single row.
        Self { tiles: w.threads.div_ceil(w.heads).clamp(least, batch), team: 1, bundle: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lstm(threads: usize, batch: usize, heads: usize, head_dim: usize) -> Division {
        Division::new(Work {
            threads,
            heads,
            batch,
            blocks: head_dim.div_ceil(16),
            row_step: 4 * head_dim * head_dim / 16,
            matrix: 16 * head_dim * head_dim,
        })
    }

    #[test]
    fn many_small_heads_go_to_threads_whole() {
        assert_eq!(lstm(2, 16, 12, 64), Division { tiles: 1, team: 1, bundle: 6 });
        assert_eq!(lstm(2, 16, 1, 64), Division { tiles: 2, team: 1, bundle: 1 });
        assert_eq!(lstm(8, 16, 12, 64), Division { tiles: 2, team: 1, bundle: 3 });
        assert_eq!(lstm(2, 16, 3, 256), Division { tiles: 2, team: 1, bundle: 1 });
    }

    #[test]
    fn large_heads_are_shared() {
        assert_eq!(lstm(2, 1, 1, 128), Division { tiles: 1, team: 2, bundle: 1 });
        assert_eq!(lstm(2, 1, 1, 512), Division { tiles: 1, team: 2, bundle: 1 });
        assert_eq!(lstm(2, 16, 3, 512), Division { tiles: 1, team: 2, bundle: 1 });
        assert_eq!(lstm(16, 64, 1, 1024), Division { tiles: 1, team: 16, bundle: 1 });
    }

    #[test]
    fn little_work_stays_on_one_thread() {
        assert_eq!(lstm(2, 1, 1, 64), Division { tiles: 1, team: 1, bundle: 1 });
        assert_eq!(lstm(8, 1, 1, 1), Division { tiles: 1, team: 1, bundle: 1 });
    }

    #[test]
    fn large_batches_are_cut() {
        assert_eq!(lstm(1, 256, 1, 512), Division { tiles: 4, team: 1, bundle: 1 });
        assert_eq!(lstm(2, 256, 1, 512), Division { tiles: 4, team: 2, bundle: 1 });
    }
}
