//! Tests the operation on an NVIDIA GPU. Without one it skips and says so.

mod common;

use flashrnn::AnyBackend;
use flashrnn::cuda::testing;

#[test]
fn cuda_agrees_with_the_cpu() -> candle_core::Result<()> {
    testing::cuda().map_or(Ok(()), |cuda| common::agrees_with_the_cpu(&AnyBackend::Cuda(cuda)))
}
