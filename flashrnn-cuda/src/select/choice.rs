//! Describes the kernels that [`crate::select`] chose, and why.

use flashrnn_core::Shapes;
use flashrnn_gpu::KernelChoice;

use crate::select::fused::{self as spread, Fused};
use crate::select::step::{self as select, Gpu, Tile};

/// Describes the forward pass's kernel.
pub(crate) fn forward(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> KernelChoice {
    match spread::fused_forward(shapes, element_bytes, gpu) {
        Some(fused) => fused_choice("forward", shapes, fused),
        None => alternating_forward(shapes, element_bytes, why_not_fused(gpu)),
    }
}

/// Describes the backward pass's kernel.
pub(crate) fn backward(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> KernelChoice {
    match spread::fused_backward(shapes, element_bytes, gpu) {
        Some(fused) => fused_choice("backward", shapes, fused),
        None => alternating_backward(shapes, element_bytes, why_not_fused(gpu)),
    }
}

/// Describes the forward pass's kernel per step.
pub(crate) fn alternating_forward(
    shapes: &Shapes,
    element_bytes: usize,
    why: &'static str,
) -> KernelChoice {
    alternating("forward", shapes, select::forward_tile(shapes, element_bytes), why)
}

/// Describes the backward pass's kernel per step.
pub(crate) fn alternating_backward(
    shapes: &Shapes,
    element_bytes: usize,
    why: &'static str,
) -> KernelChoice {
    alternating("backward", shapes, select::backward_tile(shapes, element_bytes), why)
}

fn fused_choice(pass: &'static str, shapes: &Shapes, fused: Fused) -> KernelChoice {
    KernelChoice {
        pass,
        family: "fused",
        units: fused.units,
        rows: fused.rows,
        warps: fused.threads() / 32,
        blocks: fused.grid(shapes),
        cluster: fused.blocks,
        why: "R fits the registers of a cluster",
    }
}

fn alternating(pass: &'static str, shapes: &Shapes, tile: Tile, why: &'static str) -> KernelChoice {
    KernelChoice {
        pass,
        family: "alternating",
        units: tile.units,
        rows: tile.rows,
        warps: tile.warps,
        blocks: select::blocks(shapes, tile),
        cluster: 1,
        why,
    }
}

fn why_not_fused(gpu: Gpu) -> &'static str {
    if gpu.cluster > 1 {
        "R does not fit the registers of a cluster, or a step its shared memory"
    } else {
        "R does not fit a block, and this device has no clusters"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{Lstm, Problem};

    const H200: Gpu = Gpu { cluster: 16, multiprocessors: 132, shared_memory: 227 << 10 };

    #[test]
    fn choices_say_what_and_why() {
        let shapes =
            |heads, head_dim| Problem::new(16, 1, heads, head_dim).shapes::<Lstm>().unwrap();
        let small = forward(&shapes(12, 64), 2, H200);
        assert_eq!((small.family, small.blocks), ("fused", 12 * 4 * small.cluster));
        let f32 = backward(&shapes(3, 256), 4, H200);
        assert_eq!((f32.family, f32.cluster), ("alternating", 1));
        assert!(f32.to_string().contains("does not fit"), "{f32}");
        let large = forward(&shapes(1, 4096), 2, H200).to_string();
        let want = "forward: alternating, one launch per step, 512 blocks";
        assert!(large.starts_with(want), "{large}");
    }
}
