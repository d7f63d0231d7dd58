//! Which kernels a plan runs, and how their work is divided.

pub mod fused;
pub mod step;
