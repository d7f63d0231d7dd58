//! What this crate's own tests do where there is no device: they say that they skip, and fail
//! instead where `FLASHRNN_REQUIRE` names `wgpu`.

use crate::Wgpu;
use crate::select::Choice;

pub use crate::select::{Adapter, Fused, Gradient};

/// The same device, with plans of these fused kernels, whatever would be chosen.
#[must_use]
pub fn with_fused(wgpu: Wgpu, fused: Fused) -> Wgpu {
    Wgpu { choice: Choice { fused: Some(fused), ..wgpu.choice }, ..wgpu }
}

/// The same device, with plans of the kernels that a GPU would get.
#[must_use]
pub fn as_on_gpus(wgpu: Wgpu) -> Wgpu {
    Wgpu { choice: Choice { as_on_gpus: true, ..wgpu.choice }, ..wgpu }
}

/// A device, or a line that says why the test is skipped.
///
/// # Panics
/// With `FLASHRNN_REQUIRE=wgpu`, where there is no device.
#[must_use]
pub fn wgpu() -> Option<Wgpu> {
    flashrnn_gpu::or_skip(Wgpu::new(), &["wgpu"])
}
