//! Which thread computes which head, rows and units, and when.

pub(crate) mod division;
pub(crate) mod tasks;
pub(crate) mod team;
pub(crate) mod time_loop;
