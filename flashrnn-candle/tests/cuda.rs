//! The operation on an NVIDIA GPU. Skips in words where there is none.

mod common;

use flashrnn::AnyBackend;
use flashrnn::cuda::testing;

#[test]
fn cuda_gives_what_the_cpu_gives() -> candle_core::Result<()> {
    testing::cuda().map_or(Ok(()), |cuda| common::gives_what_the_cpu_gives(&AnyBackend::Cuda(cuda)))
}
