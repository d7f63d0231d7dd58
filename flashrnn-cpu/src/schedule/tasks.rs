//! The rows and steps of a call, and the tasks into which it is divided.

use std::cmp::Reverse;

use flashrnn_core::Shapes;

use crate::memory::SharedSlice;

/// A row of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The index in the batch.
    pub b: usize,
    /// The number of steps.
    pub length: usize,
}

/// The state that a step of a row starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Previous {
    /// Zeros, because of a reset.
    Zero,
    /// The row's initial state.
    Initial,
    /// The state after the step at this token.
    Token(usize),
}

/// The time axis of a call: the token of each step, and where states are reset.
#[derive(Clone, Copy)]
pub(crate) struct TimeAxis<'a> {
    pub shapes: &'a Shapes,
    pub reverse: bool,
    /// `[B, T]`
    pub resets: Option<&'a [u8]>,
}

impl TimeAxis<'_> {
    /// Returns the token of a row's step. Steps are numbered in processing order.
    #[inline(always)]
    pub fn token(&self, row: Row, step: usize) -> usize {
        self.shapes.token(row.b, if self.reverse { row.length - 1 - step } else { step })
    }

    /// Returns whether the state is zeroed before a row's step.
    #[inline(always)]
    pub fn reset(&self, row: Row, step: usize) -> bool {
        self.resets.is_some_and(|resets| resets[self.token(row, step)] != 0)
    }

    /// Returns the state that a row's step starts from.
    #[inline(always)]
    pub fn previous(&self, row: Row, step: usize) -> Previous {
        if self.reset(row, step) {
            Previous::Zero
        } else if step == 0 {
            Previous::Initial
        } else {
            Previous::Token(self.token(row, step - 1))
        }
    }
}

/// Sorts the rows of a call by length, longest first, so that the rows that have a step always come
/// first.
pub(crate) fn sort_rows(rows: &mut [Row]) {
    // An unstable sort does not allocate; the order is total, so the result is deterministic.
    rows.sort_unstable_by_key(|row| (Reverse(row.length), row.b));
}

/// Returns how many of the sorted `rows` have the step.
#[inline(always)]
pub(crate) fn running_rows(rows: &[Row], step: usize) -> usize {
    if rows.last().is_some_and(|row| row.length > step) {
        return rows.len();
    }
    rows.partition_point(|row| row.length > step)
}

/// Some rows of one head, which advance through the time steps together.
pub(crate) struct Task<'a, S> {
    pub head: usize,
    /// Sorted, longest first.
    pub rows: &'a [Row],
    /// `[rows, S, vectors · LANES]`: the state, or its gradient in the backward pass. The task
    /// carries it from step to step in full precision.
    pub state: SharedSlice<'a, S>,
    /// `[2, rows, depth]`: a double buffer of the product's factors. The forward pass keeps h there
    /// (depth D, rounded to the tensors' type), the backward pass the gradients of the gates (depth
    /// Gr · D). One half is read while the other is written, so a step needs only one barrier.
    pub inputs: SharedSlice<'a, S>,
}

impl<S> Task<'_, S> {
    /// Returns the offset in [`Self::inputs`] of the half that an iteration reads, for factors of
    /// `depth` per row.
    #[inline(always)]
    pub fn read_half(&self, iteration: usize, depth: usize) -> usize {
        iteration % 2 * self.rows.len() * depth
    }

    /// Returns the offset in [`Self::inputs`] of the half that an iteration writes.
    #[inline(always)]
    pub fn written_half(&self, iteration: usize, depth: usize) -> usize {
        (iteration + 1) % 2 * self.rows.len() * depth
    }
}
