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
    /// Maximum number of blocks per cluster of fused kernels; 1 if there are no clusters (before
    /// compute capability 9.0). Tests set 0, which leaves all heads to the grid kernels.
    pub cluster: usize,
    /// How many clusters of [`CLUSTER_SIZES`] run at the same time, with one block per
    /// multiprocessor.
    pub clusters: [usize; CLUSTER_SIZES.len()],
    /// The cluster size of grid kernels whose pass can have clusters, for tests.
    pub grid_cluster: Option<usize>,
    /// Number of multiprocessors.
    pub multiprocessors: usize,
    /// Maximum shared memory per block in bytes.
    pub shared_memory: usize,
}

/// The cluster sizes that kernels use.
pub const CLUSTER_SIZES: [usize; 5] = [1, 2, 4, 8, 16];

impl Gpu {
    /// An NVIDIA H200.
    pub const H200: Self = Self {
        cluster: 16,
        clusters: [132, 66, 30, 15, 7],
        grid_cluster: None,
        multiprocessors: 132,
        shared_memory: 227 << 10,
    };

    /// An NVIDIA A100, which has no clusters.
    pub const A100: Self = Self {
        cluster: 1,
        clusters: [108, 0, 0, 0, 0],
        grid_cluster: None,
        multiprocessors: 108,
        shared_memory: 163 << 10,
    };

    /// An NVIDIA GeForce RTX 4090, which has no clusters.
    pub const RTX_4090: Self = Self {
        cluster: 1,
        clusters: [128, 0, 0, 0, 0],
        grid_cluster: None,
        multiprocessors: 128,
        shared_memory: 99 << 10,
    };

    /// Returns how many clusters of `size` blocks run at the same time.
    pub(crate) fn clusters_of(&self, size: usize) -> usize {
        let i = CLUSTER_SIZES.iter().position(|&s| s == size);
        i.map_or(0, |i| self.clusters[i].min(self.multiprocessors / size))
    }
}
