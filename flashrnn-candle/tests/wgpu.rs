//! The operation on a device that wgpu finds. Skips in words where there is none.

mod common;

use flashrnn::AnyBackend;
use flashrnn::wgpu::testing;

#[test]
fn wgpu_gives_what_the_cpu_gives() -> candle_core::Result<()> {
    testing::wgpu().map_or(Ok(()), |wgpu| common::gives_what_the_cpu_gives(&AnyBackend::Wgpu(wgpu)))
}
