//! Which kernels a plan runs, and how their work is divided.

pub(crate) mod choice;
pub mod fused;
pub mod step;
