//! Packing R and b into the order in which the kernels read them.

use flashrnn_core::Result;

use crate::call::Address;
use crate::kernels::launch::{Kernel, Launch, argument, grid};
use crate::packed::PackedBuffers;
use crate::passes::Common;

/// Enqueues `kernel`, which packs `r [Gr, N, D, D]` and `b [G, N, D]` into `packed`.
pub(crate) fn pack(
    common: &Common,
    kernel: &Kernel,
    [r, b]: [Address; 2],
    packed: PackedBuffers,
) -> Result<()> {
    let shapes = &common.shapes;
    let matrices = shapes.recurrent * shapes.heads;
    let PackedBuffers { mut forward, mut backward, b: mut bias } = packed;
    let (mut r, mut b) = (r, b);
    let sizes = common.sizes;
    let (mut recurrent, mut heads) = (shapes.recurrent as i32, sizes.heads);
    let (mut head_dim, mut depth) = (sizes.head_dim, sizes.depth);
    let mut bias_len = shapes.b().iter().product::<usize>() as i64;
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
    let max_blocks = common.device.context.multiprocessors * 16;
    let launch = Launch::new(grid((matrices * tiles * tiles).min(max_blocks))?, 256);
    // SAFETY: the kernel takes (const W*, const W*, T*, T*, float*, int, int, int, int, Offset).
    unsafe { kernel.launch(common.stream(), &launch, &mut arguments) }
}
