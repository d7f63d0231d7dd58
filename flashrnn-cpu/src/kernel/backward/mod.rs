//! The backward pass of a task. Each iteration computes a block of units of the task's rows in one
//! step, from the last step to the first; an extra iteration produces `d_s0`.
//!
//! ```text
//! for each step from the last, for each block of units, for each group of rows:
//!     d_state = d_last at the row's own end, else 0 if the step after was reset, else
//!               d_state + [h: clip(Rᵀ d_gates of the step after)]
//!     d_state += d_states[t]
//!     (d_state, d_gates) = Pᵀ(state before, gates, d_state)
//!     store d_wx, and `d_gates` for the products of the step before
//! ```

mod block;
mod call;
mod pointwise;

pub(crate) use block::BackwardBlock;
pub(crate) use call::{BackwardCall, clear_padding};
