//! Products over all time steps at once, before and after the time loop.

mod gather;
mod recompute;
mod weight_grad;

pub(crate) use gather::Steps;
pub(crate) use recompute::{Recompute, RecomputeScratch};
pub(crate) use weight_grad::{WeightGrad, WeightGradPart, WeightGradScratch, WeightGradSink};
