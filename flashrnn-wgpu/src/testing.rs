//! Handles for this crate's own tests. Without a device a test prints that it is skipped, or fails
//! if `FLASHRNN_REQUIRE` names `wgpu`.

use crate::Wgpu;
use crate::select::Preferences;

pub use crate::select::{Adapter, Fused, GradTile};

/// Returns a handle of the same device whose plans use the fused kernels `fused`.
#[must_use]
pub fn with_fused(wgpu: Wgpu, fused: Fused) -> Wgpu {
    Wgpu { preferences: Preferences { fused: Some(fused), ..wgpu.preferences }, ..wgpu }
}

/// Returns a handle of the same device whose plans use the kernels of a GPU.
#[must_use]
pub fn as_on_gpus(wgpu: Wgpu) -> Wgpu {
    Wgpu { preferences: Preferences { as_on_gpus: true, ..wgpu.preferences }, ..wgpu }
}

/// Opens a device, or returns `None` if the test is to be skipped.
///
/// # Panics
/// If there is no device and `FLASHRNN_REQUIRE` names `wgpu`.
#[must_use]
pub fn wgpu() -> Option<Wgpu> {
    flashrnn_gpu::or_skip(Wgpu::new(), &["wgpu"])
}
