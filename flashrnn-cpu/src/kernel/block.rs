//! The unit of work that a time loop hands to a cell's kernel.

use crate::schedule::Task;

/// A block of units, in all rows of a task that have the step. `A` is the type of the call's
/// arguments.
pub(crate) struct Block<'a, A, S> {
    pub call: &'a A,
    pub task: &'a Task<'a, S>,
    /// The iteration of the time loop. The backward pass iterates backwards in time.
    pub step: usize,
    pub block: usize,
    /// Room for the block's products: [`ROWS`](crate::simd::Simd::ROWS) rows of
    /// [`Panels::outputs`](super::Panels::outputs).
    pub scratch: &'a mut [S],
}

/// A block with the cell that computes it.
pub(crate) struct CellTask<'a, C, B> {
    pub cell: &'a C,
    pub block: B,
}
