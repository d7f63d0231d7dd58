//! The forward pass of a task. Each iteration computes a block of units of the task's rows in one
//! step.
//!
//! ```text
//! for each step, for each block of units, for each group of rows:
//!     gates = R h                          (product.rs, from `h` of the previous step)
//!     gates += wx[t] + b;  state = P(state, gates);  clip
//!     store outputs, `state`, and `h` rounded to T for the next step's products
//! ```
//!
//! The step before a reset zeroes the `state` and `h` that it passes to the next step.

mod block;
mod call;
mod pointwise;
mod start;

pub(crate) use block::ForwardBlock;
pub(crate) use call::ForwardCall;
pub(crate) use start::start_rows;
