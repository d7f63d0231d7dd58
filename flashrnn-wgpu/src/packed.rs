//! Packed weights.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use flashrnn_core::{Shapes, WeightsLayout};

use crate::device::Device;
use crate::memory::{Buffer, DeviceId};
use crate::select::Fused;

/// Holds R rounded to `T`, R transposed and b, in the order of shaders/weights.wgsl, and R once
/// more for fused kernels.
pub struct Packed<T> {
    pub(crate) buffer: Buffer<u32>,
    element: PhantomData<fn() -> T>,
}

impl<T> Packed<T> {
    pub(crate) fn new(buffer: Buffer<u32>) -> Self {
        Self { buffer, element: PhantomData }
    }
}

impl<T> fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("buffer", &self.buffer).finish()
    }
}

/// The order of packed weights, which depends on the device and on how fused kernels divide R among
/// threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedOrder {
    device: DeviceId,
    /// `None` for per-step kernels.
    fused: Option<Division>,
}

/// The division of a head's R among the threads of the fused kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Division {
    /// Units of a head, padding included.
    units: usize,
    /// Parts along k.
    split: usize,
}

/// Returns the layout of the weights of plans with these kernels.
pub(crate) fn layout(
    device: &Device,
    shapes: &Shapes,
    fused: Option<Fused>,
) -> Arc<WeightsLayout<PackedOrder>> {
    let fused = fused.map(|Fused { units, split, .. }| Division { units, split });
    Arc::new(shapes.weights_layout(PackedOrder { device: device.id, fused }))
}
