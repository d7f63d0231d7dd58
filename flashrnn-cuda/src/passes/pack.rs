//! R and b in the order in which the kernels read them.

use std::fmt;

use flashrnn_core::{Element, Result};

use crate::call::Address;
use crate::device::{Device, Place};
use crate::engine::Engine;
use crate::kernels::launch::Launch;
use crate::memory::Buffer;
use crate::passes::time_loop::{argument, grid};

/// R and b packed: R rounded to `T` in the orders of both passes, b in f32.
pub struct Packed<T: Element> {
    /// `[Gr, N, D_out, depth]`
    pub(crate) forward: Buffer<T>,
    /// `[N, D_in, Gr, depth]`
    pub(crate) backward: Buffer<T>,
    /// `[G, N, D]`
    pub(crate) b: Buffer<f32>,
}

/// What packed weights depend on besides the cell's and the problem's sizes: the padding of rows,
/// and the stream in whose order their memory is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedOrder {
    depth: usize,
    place: Place,
}

impl PackedOrder {
    pub(crate) fn new(depth: usize, device: &Device) -> Self {
        Self { depth, place: device.place() }
    }
}

impl<T: Element> fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed")
            .field("forward", &self.forward)
            .field("b", &self.b)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Enqueues the packing of `r [Gr, N, D, D]` and `b [G, N, D]`.
    pub(crate) fn pack<T: Element>(&self, r: Address, b: Address) -> Result<Packed<T>> {
        let shapes = &self.shapes;
        let matrices = shapes.recurrent * shapes.heads;
        let len = matrices * shapes.head_dim * self.depth;
        let packed = Packed::<T> {
            forward: self.device.alloc(len)?,
            backward: self.device.alloc(len)?,
            b: self.device.alloc(shapes.b().iter().product())?,
        };
        let (mut r, mut b, mut bias) = (r, b, packed.b.ptr());
        let (mut forward, mut backward) = (packed.forward.ptr(), packed.backward.ptr());
        let sizes = self.sizes;
        let (mut recurrent, mut heads) = (shapes.recurrent as i32, sizes.heads);
        let (mut head_dim, mut depth, mut bias_len) =
            (sizes.head_dim, sizes.depth, packed.b.len() as i64);
        let mut arguments = [
            argument(&mut r),
            argument(&mut b),
            argument(&mut forward),
            argument(&mut backward),
            argument(&mut bias),
            argument(&mut recurrent),
            argument(&mut heads),
            argument(&mut head_dim),
            argument(&mut depth),
            argument(&mut bias_len),
        ];
        let tiles = self.depth.div_ceil(32);
        let blocks = (matrices * tiles * tiles).min(self.device.shared.multiprocessors * 16);
        let launch = Launch::new(grid(blocks)?, 256);
        // SAFETY: the kernel takes (const W*, const W*, T*, T*, float*, int, int, int, int,
        // Offset).
        unsafe { self.pack.launch(self.device.stream.cu_stream(), &launch, &mut arguments)? };
        Ok(packed)
    }
}
