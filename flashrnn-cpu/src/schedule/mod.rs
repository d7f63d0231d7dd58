//! Decides which thread computes which heads, rows and units, and when.

mod division;
mod tasks;
mod team;
mod time_loop;

pub(crate) use division::{Division, MAX_WHOLE_MATRIX, Work};
pub(crate) use tasks::{Previous, Row, Task, TimeAxis, running_rows, sort_rows};
pub(crate) use time_loop::{LoopSizes, Pass, TimeLoop};
