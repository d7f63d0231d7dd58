//! Which kernels a plan runs, for people: what [`crate::select`] chose, and why.

use std::fmt;

use flashrnn_core::Shapes;

use crate::select::fused::{self as spread, Fused};
use crate::select::step::{self as select, Gpu, Tile};

/// The kernel of one pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelChoice {
    /// `forward` or `backward`.
    pub pass: &'static str,
    /// `fused`: all steps in one launch, R in registers; `alternating`: a launch a step.
    pub family: &'static str,
    /// Units of a head that a block computes.
    pub units: usize,
    /// Rows of the batch that a block computes.
    pub rows: usize,
    /// Warps of a block.
    pub warps: usize,
    /// Blocks of a launch.
    pub blocks: usize,
    /// Blocks of a cluster, which share a head.
    pub cluster: usize,
    /// What decided it.
    pub why: &'static str,
}

impl KernelChoice {
    /// The forward pass's kernel.
    #[must_use]
    pub fn forward(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> Self {
        match spread::fused_forward(shapes, element_bytes, gpu) {
            Some(fused) => Self::fused("forward", shapes, fused),
            None => Self::alternating_forward(shapes, element_bytes, why_not_fused(gpu)),
        }
    }

    /// The backward pass's kernel.
    #[must_use]
    pub fn backward(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> Self {
        match spread::fused_backward(shapes, element_bytes, gpu) {
            Some(fused) => Self::fused("backward", shapes, fused),
            None => Self::alternating_backward(shapes, element_bytes, why_not_fused(gpu)),
        }
    }

    /// The forward pass's kernel of a step.
    pub(crate) fn alternating_forward(
        shapes: &Shapes,
        element_bytes: usize,
        why: &'static str,
    ) -> Self {
        Self::alternating("forward", shapes, select::forward_tile(shapes, element_bytes), why)
    }

    /// The backward pass's kernel of a step.
    pub(crate) fn alternating_backward(
        shapes: &Shapes,
        element_bytes: usize,
        why: &'static str,
    ) -> Self {
        Self::alternating("backward", shapes, select::backward_tile(shapes, element_bytes), why)
    }

    fn fused(pass: &'static str, shapes: &Shapes, fused: Fused) -> Self {
        Self {
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

    fn alternating(pass: &'static str, shapes: &Shapes, tile: Tile, why: &'static str) -> Self {
        Self {
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
}

fn why_not_fused(gpu: Gpu) -> &'static str {
    if gpu.cluster > 1 {
        "R does not fit the registers of a cluster, or a step its shared memory"
    } else {
        "R does not fit a block, and this device has no clusters"
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, family, units, rows, warps, blocks, cluster, why } = self;
        let launch = if *family == "fused" { "one launch" } else { "a launch a step" };
        write!(
            f,
            "{pass}: {family}, {launch} of {blocks} blocks (clusters of {cluster}), each {units} units by "
        )?;
        write!(f, "{rows} rows on {warps} warps; {why}")
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
        let small = KernelChoice::forward(&shapes(12, 64), 2, H200);
        assert_eq!((small.family, small.blocks), ("fused", 12 * 4 * small.cluster));
        let f32 = KernelChoice::backward(&shapes(3, 256), 4, H200);
        assert_eq!((f32.family, f32.cluster), ("alternating", 1));
        assert!(f32.to_string().contains("does not fit"), "{f32}");
        let large = KernelChoice::forward(&shapes(1, 4096), 2, H200).to_string();
        assert!(
            large.starts_with("forward: alternating, a launch a step of 512 blocks"),
            "{large}"
        );
    }
}
