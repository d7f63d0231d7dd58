//! The properties that every backend must have, tested on a GPU.

use std::sync::OnceLock;

use flashrnn_cuda::{Cuda, testing};

/// Opens one GPU for all tests, so that each kernel is compiled once.
fn cuda() -> Option<Cuda> {
    static CUDA: OnceLock<Option<Cuda>> = OnceLock::new();
    CUDA.get_or_init(testing::cuda).clone()
}

flashrnn_testsuite::conformance!(if_available: cuda(), same_bits_as: [testing::cuda()], skip: []);

/// The same properties with per-step kernels, which large heads always use.
mod alternating {
    use flashrnn_cuda::Family;
    flashrnn_testsuite::conformance!(
        if_available: super::cuda().map(|cuda| cuda.with_family(Family::Alternating)),
        skip: []
    );
}

/// The same properties with the grid kernels, which large heads of 16-bit tensors use.
mod grid {
    use flashrnn_cuda::Limits;
    const LIMITS: Limits = Limits { cluster: 0, grid_cluster: Some(1), ..Limits::NONE };
    flashrnn_testsuite::conformance!(
        if_available: super::cuda().map(|cuda| cuda.with_limits(LIMITS)),
        skip: [(
            "streaming_has_the_same_bits",
            "single steps run in the per-step kernels, which take half the time of a grid kernel"
        )]
    );
}

/// The same properties with the grid kernels, in clusters where a pass can have them.
mod grid_in_clusters {
    use flashrnn_cuda::Limits;
    const LIMITS: Limits = Limits { cluster: 0, grid_cluster: Some(2), ..Limits::NONE };
    flashrnn_testsuite::conformance!(
        if_available: super::cuda().map(|cuda| cuda.with_limits(LIMITS)),
        skip: [(
            "streaming_has_the_same_bits",
            "single steps run in the per-step kernels, which take half the time of a grid kernel"
        )]
    );
}
