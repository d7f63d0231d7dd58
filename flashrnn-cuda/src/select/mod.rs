//! Which kernels a plan runs, and how their work is divided: pure functions of the problem, the
//! element type and the GPU.

pub mod alignment;
pub(crate) mod choice;
pub mod fused;
pub mod step;
pub(crate) mod weight_grad;

/// Holds the GPU properties that drive kernel selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Maximum blocks of a cluster; 1 if there are none (before compute capability 9.0).
    pub cluster: usize,
    /// Number of multiprocessors.
    pub multiprocessors: usize,
    /// Maximum shared memory of a block in bytes.
    pub shared_memory: usize,
}
