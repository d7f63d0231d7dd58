//! The devices that tests run on.

use std::sync::OnceLock;

use candle_core::Device;

/// Returns candle's CPU device and, with the feature `candle-cuda`, two handles of the first GPU,
/// one on CUDA's per-thread stream and one on a stream of its own.
pub fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let mut devices = vec![Device::Cpu];
        if cfg!(feature = "candle-cuda") {
            devices.push(Device::new_cuda(0).expect("a GPU"));
            devices.push(Device::new_cuda_with_stream(0).expect("a GPU"));
        }
        devices
    })
}
