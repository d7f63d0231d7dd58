//! The passes of a plan.

mod backward;
mod forward;
pub(crate) mod fused;
pub(crate) mod pack;
pub(crate) mod recompute;
pub(crate) mod time_loop;
pub(crate) mod weight_grad;
