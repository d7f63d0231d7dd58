//! A call's rows and steps, and the tasks it is divided into.

use flashrnn_core::Shapes;

/// A row of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its index in the batch.
    pub b: usize,
    /// How many steps it has.
    pub length: usize,
}

/// What lies before a step of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// A reset.
    Zero,
    /// The initial state of the row.
    Initial,
    /// Another step, by its token.
    Token(usize),
}

/// The time axis of a call: where a row's steps lie in the tensors, and where its state is reset.
#[derive(Clone, Copy)]
pub(crate) struct Time<'a> {
    pub shapes: &'a Shapes,
    pub reverse: bool,
    pub resets: Option<&'a [u8]>,
}

impl Time<'_> {
    /// The token of a row's step, counted in processing order.
    #[inline(always)]
    pub fn token(&self, row: Row, step: usize) -> usize {
        self.shapes.token(row.b, if self.reverse { row.length - 1 - step } else { step })
    }

    /// Whether the state is zeroed before a row's step.
    #[inline(always)]
    pub fn reset(&self, row: Row, step: usize) -> bool {
        self.resets.is_some_and(|resets| resets[self.token(row, step)] != 0)
    }

    #[inline(always)]
    pub fn before(&self, row: Row, step: usize) -> Before {
        if self.reset(row, step) {
            Before::Zero
        } else if step == 0 {
            Before::Initial
        } else {
            Before::Token(self.token(row, step - 1))
        }
    }
}

/// Sorts the rows of a call, the longest first, so that those still running are always the first
/// ones.
pub(crate) fn sort_rows(rows: &mut [Row]) {
    // The sort that needs no memory, with an order that leaves it no choice.
    rows.sort_unstable_by_key(|row| (std::cmp::Reverse(row.length), row.b));
}

/// How many of the sorted `rows` have the step.
#[inline(always)]
pub(crate) fn active(rows: &[Row], step: usize) -> usize {
    if rows.last().is_some_and(|row| row.length > step) {
        return rows.len();
    }
    rows.partition_point(|row| row.length > step)
}

/// A head and some rows that go through time together, with `D`ata of their own.
pub(crate) struct Task<'a, D> {
    pub head: usize,
    pub rows: &'a [Row],
    pub data: D,
}
