//! Products over all time steps at once, before and after the time loop.

pub(crate) mod gather;
pub(crate) mod recompute;
pub(crate) mod weight_grad;
