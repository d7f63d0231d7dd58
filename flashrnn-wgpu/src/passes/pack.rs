//! R and b in the order in which the kernels read them.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use flashrnn_core::{Element, Result, Shapes, WeightsLayout};

use crate::device::{Device, DeviceId};
use crate::engine::Engine;
use crate::kernels::{Bound, Call};
use crate::memory::{Buffer, View};
use crate::select::{self, Fused};

/// R rounded to `T`, R transposed and b, in the form of shaders/weights.wgsl, and R once more for
/// fused kernels.
pub struct Packed<T> {
    pub(crate) buffer: Buffer<u32>,
    element: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("buffer", &self.buffer).finish()
    }
}

/// What the order of packed weights depends on besides their sizes: the device, and how fused
/// kernels divide R among threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedOrder {
    device: DeviceId,
    /// `None` for the alternating kernels.
    fused: Option<Division>,
}

/// How the fused kernels' threads divide R of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Division {
    /// Units, with those that fill up the head.
    units: usize,
    /// Parts of k.
    split: usize,
}

/// The layout of the weights of plans with these kernels.
pub(crate) fn layout(
    device: &Device,
    shapes: &Shapes,
    fused: Option<Fused>,
) -> Arc<WeightsLayout<PackedOrder>> {
    let fused = fused.map(|Fused { units, split, .. }| Division { units, split });
    Arc::new(shapes.weights_layout(PackedOrder { device: device.id, fused }))
}

impl Engine {
    /// Packs the weights.
    pub fn pack<T: Element, W: Element>(
        &self,
        r: View<'_, W>,
        b: View<'_, W>,
    ) -> Result<Packed<T>> {
        let [plain, fused] = select::packed(&self.shapes, self.fused, self.common.narrow());
        // With one piece more: b of the last unit of an odd number is read with one that is thrown
        // away.
        let buffer = self.device.zeroed::<u32>(4 * (plain + fused + 1))?;
        self.device.scope(0, || {
            let mut params = self.params();
            let bound = [
                self.bind(Some(r), false, 0, &mut params.r_first),
                self.bind(Some(b), false, 1, &mut params.b_first),
                Bound::whole(&buffer.buffer),
            ];
            let mut call = Call::new(&self.device);
            call.run(&self.pack, &params, &bound, plain.div_ceil(64));
            if let Some(pack_fused) = &self.pack_fused {
                call.run(pack_fused, &params, &bound, fused.div_ceil(64));
            }
            call.submit();
            Ok(())
        })?;
        Ok(Packed { buffer, element: PhantomData })
    }
}
