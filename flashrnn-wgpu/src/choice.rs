//! Which kernels a plan runs, for people: what `select` chose, and why.

use std::fmt;

use flashrnn_core::{Dtype, Shapes};

use crate::select::{self, Adapter, Family, Fused};

/// The kernel of one pass's time steps. The fields are those of flashrnn-cuda's, with CUDA's words:
/// a block is a workgroup, a launch a dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelChoice {
    /// `forward` or `backward`.
    pub pass: &'static str,
    /// `fused`: up to 2048 steps in one launch; `alternating`: a launch per step.
    pub family: &'static str,
    /// Units of a head that a block computes, with those that fill up the head.
    pub units: usize,
    /// Rows of the batch that a block computes.
    pub rows: usize,
    /// Threads of a block, in 32s.
    pub warps: usize,
    /// Blocks of a launch.
    pub blocks: usize,
    /// Blocks that share a head's memory: always 1, since WGSL has no clusters.
    pub cluster: usize,
    /// What decided it.
    pub why: &'static str,
}

impl KernelChoice {
    /// Describes the forward and the backward kernel of a plan. `fused` is what [`select`] chose
    /// for it, `element` is T.
    pub(crate) fn of_plan(
        shapes: &Shapes,
        element: Dtype,
        fused: Option<Fused>,
        adapter: Adapter,
        family: Family,
    ) -> [Self; 2] {
        let narrow = element != Dtype::F32;
        ["forward", "backward"].map(|pass| match fused {
            Some(fused) => Self::fused(pass, shapes, fused, narrow),
            None => Self::alternating(pass, shapes, adapter, family),
        })
    }

    fn fused(pass: &'static str, shapes: &Shapes, fused: Fused, narrow: bool) -> Self {
        let lines = if pass == "forward" {
            fused.forward(shapes, narrow)
        } else {
            fused.backward(shapes, narrow)
        };
        Self {
            pass,
            family: "fused",
            units: fused.units,
            rows: fused.rows,
            warps: fused.threads().div_ceil(32),
            blocks: fused.groups(shapes),
            cluster: 1,
            why: match lines.kept == lines.chunks {
                true => "R of a head fits the registers of a workgroup",
                false => "R of a head is small enough to be read again at every step",
            },
        }
    }

    fn alternating(pass: &'static str, shapes: &Shapes, adapter: Adapter, family: Family) -> Self {
        Self {
            pass,
            family: "alternating",
            units: select::STEP_UNITS,
            rows: select::STEP_ROWS,
            warps: 256 / 32,
            blocks: select::step_groups(shapes),
            cluster: 1,
            why: match family {
                Family::Alternating => "asked for",
                _ => why_not_fused(adapter),
            },
        }
    }
}

/// Says why an adapter has no fused kernels for a problem.
pub(crate) fn why_not_fused(adapter: Adapter) -> &'static str {
    match adapter.cpu {
        true => "drivers of the CPU get fused kernels only in f32 and for heads of up to 8 units",
        false => "R is too large for a workgroup, or a step for its memory",
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, family, units, rows, warps, blocks, cluster: _, why } = self;
        let launch =
            if *family == "fused" { "many steps in a dispatch" } else { "a dispatch per step" };
        write!(
            f,
            "{pass}: {family}, {launch} of {blocks} workgroups, each {units} units by {rows} rows "
        )?;
        write!(f, "on {} threads; {why}", 32 * warps)
    }
}

#[cfg(test)]
mod tests {
    use flashrnn_core::{Lstm, Problem};

    use super::*;
    use crate::select::Choice;
    use crate::select::examples::H200;

    fn kernels(heads: usize, head_dim: usize, family: Family) -> [KernelChoice; 2] {
        let shapes = Problem::new(16, 1, heads, head_dim).shapes::<Lstm>().unwrap();
        let fused = Choice { family, ..Choice::default() }.fused(&shapes, H200, Dtype::Bf16);
        KernelChoice::of_plan(&shapes, Dtype::Bf16, fused, H200, family)
    }

    #[test]
    fn choices_say_what_and_why() {
        let [forward, backward] = kernels(12, 64, Family::Auto);
        assert_eq!((forward.family, forward.blocks, backward.warps), ("fused", 12 * 8, 8));
        assert!(kernels(3, 256, Family::Auto)[1].why.contains("read again"));
        let large = kernels(2, 1024, Family::Auto)[0].to_string();
        assert!(
            large.starts_with("forward: alternating, a dispatch per step of 256 workgroups"),
            "{large}"
        );
        assert_eq!(kernels(12, 64, Family::Alternating)[0].why, "asked for");
    }
}
