//! Tests the operation on a wgpu device. Without one it skips and says so.

mod common;

use flashrnn::AnyBackend;
use flashrnn::wgpu::testing;

#[test]
fn wgpu_agrees_with_the_cpu() -> candle_core::Result<()> {
    testing::wgpu().map_or(Ok(()), |wgpu| common::agrees_with_the_cpu(&AnyBackend::Wgpu(wgpu)))
}
