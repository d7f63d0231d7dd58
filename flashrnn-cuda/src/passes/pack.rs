//! Packed weights: R and b in the order in which the kernels read them.

use std::fmt;
use std::sync::Arc;

use flashrnn_core::{Element, Result, WeightsLayout};

use crate::call::Address;
use crate::device::StreamId;
use crate::kernels::launch::{Kernel, Launch, argument, grid};
use crate::memory::Buffer;
use crate::passes::Common;

/// Holds packed weights: R rounded to `T` in the orders of both passes, and b in f32.
pub struct Packed<T: Element> {
    /// `[Gr, N, D_out, depth]`
    pub(crate) forward: Buffer<T>,
    /// `[N, D_in, Gr, depth]`
    pub(crate) backward: Buffer<T>,
    /// `[G, N, D]`
    pub(crate) b: Buffer<f32>,
}

/// Identifies what packed weights depend on besides the sizes of the cell and the problem: the
/// padding of rows, and the stream that their memory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedOrder {
    depth: usize,
    stream: StreamId,
}

impl<T: Element> fmt::Debug for Packed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed")
            .field("forward", &self.forward)
            .field("b", &self.b)
            .finish_non_exhaustive()
    }
}

/// Returns the layout of the weights that a plan packs and accepts.
pub(crate) fn layout(common: &Common) -> Arc<WeightsLayout<PackedOrder>> {
    let shapes = &common.shapes;
    Arc::new(WeightsLayout {
        recurrent: shapes.recurrent,
        gates: shapes.gates,
        heads: shapes.heads,
        head_dim: shapes.head_dim,
        order: PackedOrder { depth: common.depth, stream: common.device.stream_id() },
    })
}

/// Enqueues `kernel`, which packs `r [Gr, N, D, D]` and `b [G, N, D]`.
pub(crate) fn pack<T: Element>(
    common: &Common,
    kernel: &Kernel,
    r: Address,
    b: Address,
) -> Result<Packed<T>> {
    let (shapes, device) = (&common.shapes, &common.device);
    let matrices = shapes.recurrent * shapes.heads;
    let len = matrices * shapes.head_dim * common.depth;
    let packed = Packed::<T> {
        forward: device.alloc(len)?,
        backward: device.alloc(len)?,
        b: device.alloc(shapes.b().iter().product())?,
    };
    let (mut r, mut b, mut bias) = (r, b, packed.b.ptr());
    let (mut forward, mut backward) = (packed.forward.ptr(), packed.backward.ptr());
    let sizes = common.sizes;
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
    let tiles = common.depth.div_ceil(32);
    let blocks = (matrices * tiles * tiles).min(device.context.multiprocessors * 16);
    let launch = Launch::new(grid(blocks)?, 256);
    // SAFETY: the kernel takes (const W*, const W*, T*, T*, float*, int, int, int, int, Offset).
    unsafe { kernel.launch(common.stream(), &launch, &mut arguments)? };
    Ok(packed)
}
