//! The unit of work that a time loop hands to a cell's kernel.

use crate::schedule::Task;

/// A block of units of all rows of a task that have the step. `A` is the call's arguments.
pub(crate) struct Block<'a, A, S> {
    pub call: &'a A,
    pub task: &'a Task<'a, S>,
    /// Counted in the order of the time loop, backwards in time in the backward pass.
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
