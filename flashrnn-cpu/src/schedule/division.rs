//! The division of a call into tasks and teams.

/// The division of a call.
///
/// A task consists of some rows of one head. Either every task belongs to one thread, or a team of
/// threads shares each task block by block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Division {
    /// The number of tasks per head.
    pub tiles: usize,
    /// The number of threads that share a task.
    pub team: usize,
    /// The number of heads that one thread advances together, step by step, for the same rows. It
    /// divides the total number of heads. Bundling helps because the inputs of neighbouring heads
    /// in a step share pages of memory.
    pub bundle: usize,
}

/// The sizes that a division depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub threads: usize,
    pub heads: usize,
    pub batch: usize,
    /// Blocks of units per head.
    pub blocks: usize,
    /// Vector multiply-adds per row, head and step, which is about the number of cycles.
    pub row_step: usize,
    /// Bytes of a head's packed matrix.
    pub matrix: usize,
}

/// The maximum number of rows of a task. More would evict R from the cache.
const MAX_ROWS: usize = 64;
/// The minimum number of rows of a task if the batch has that many. With fewer, the product waits
/// for loads.
const MIN_ROWS: usize = 4;
/// The maximum size in bytes of a head's matrix that one thread reads alone in every step, from its
/// core's L2 cache and partly from L3. A team shares larger matrices.
pub(crate) const MAX_WHOLE_MATRIX: usize = 1 << 20;
/// The maximum total size in bytes of the matrices of a bundle, so that they stay in a core's L2
/// cache.
const MAX_BUNDLE_MATRICES: usize = 512 << 10;
/// The minimum cycles of work per team member and step. With less, two threads take as long as one,
/// because of the signals between them.
const MIN_SHARE_CYCLES: usize = 1100;

impl Division {
    /// Assigns whole tasks to threads if they divide evenly, or nearly so because there are many,
    /// and each thread can keep a head's matrix in its cache. Otherwise forms teams, in which each
    /// member keeps a part of the matrix, if there is enough work for teams.
    pub fn new(work: Work) -> Self {
        let Work { threads, heads, matrix, .. } = work;
        let batch = work.batch.max(1);
        let min_tiles = batch.div_ceil(MAX_ROWS);
        let max_tiles = (batch / MIN_ROWS).max(min_tiles);
        let even = |tasks: usize| tasks.is_multiple_of(threads) || tasks >= 4 * threads;
        if matrix <= MAX_WHOLE_MATRIX
            && let Some(tiles) = (min_tiles..=max_tiles).find(|&tiles| even(heads * tiles))
        {
            let max_bundle = (MAX_BUNDLE_MATRICES / matrix.max(1)).clamp(1, heads);
            let bundle = (1..=max_bundle)
                .rev()
                .find(|&n| heads.is_multiple_of(n) && even(heads / n * tiles));
            return Self { tiles, team: 1, bundle: bundle.unwrap_or(1) };
        }
        let cycles = batch.div_ceil(min_tiles) * work.row_step;
        let team = threads.min(work.blocks).min((cycles / MIN_SHARE_CYCLES).max(1));
        if team > 1 || threads == 1 {
            return Self { tiles: min_tiles, team, bundle: 1 };
        }
        // There is too little work for a team, so each thread gets one task, of a single row if
        // necessary.
        Self { tiles: threads.div_ceil(heads).clamp(min_tiles, batch), team: 1, bundle: 1 }
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
    fn threads_take_small_heads_whole() {
        assert_eq!(lstm(2, 16, 12, 64), Division { tiles: 1, team: 1, bundle: 6 });
        assert_eq!(lstm(2, 16, 1, 64), Division { tiles: 2, team: 1, bundle: 1 });
        assert_eq!(lstm(8, 16, 12, 64), Division { tiles: 2, team: 1, bundle: 3 });
        assert_eq!(lstm(2, 16, 3, 256), Division { tiles: 2, team: 1, bundle: 1 });
    }

    #[test]
    fn teams_share_large_heads() {
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
