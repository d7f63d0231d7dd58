//! The properties that every backend must have, on a CUDA device.

use std::sync::OnceLock;

use flashrnn_cuda::{Cuda, testing};

/// One device for all tests, so that each kernel is compiled once.
fn cuda() -> Option<Cuda> {
    static CUDA: OnceLock<Option<Cuda>> = OnceLock::new();
    CUDA.get_or_init(testing::cuda).clone()
}

flashrnn_testsuite::conformance!(where_found: cuda(), same_bits_as: [testing::cuda()], skip: []);
