//! Pure functions that choose the kernels of a plan and divide their work. They depend only on the
//! problem, the element type and the GPU.

pub mod alignment;
pub(crate) mod choice;
pub mod fused;
pub mod grid;
pub mod step;
pub(crate) mod weight_grad;

/// Holds the GPU properties that drive kernel selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Maximum number of blocks per cluster; 1 if there are no clusters (before compute capability
    /// 9.0). Tests set 0, which leaves all heads to the grid kernels.
    pub cluster: usize,
    /// Number of multiprocessors.
    pub multiprocessors: usize,
    /// Maximum shared memory per block in bytes.
    pub shared_memory: usize,
}
