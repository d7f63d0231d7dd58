//! Packing R and b into the order in which the kernels read them.

use flashrnn_core::{Element, Result};

use crate::call::Address;
use crate::kernels::launch::{Kernel, Launch, argument, grid};
use crate::packed::Packed;
use crate::passes::Common;

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
