//! Describes the kernels that [`select`](super) chose, and why.

use flashrnn_core::{Dtype, Shapes};
use flashrnn_gpu::{Family, KernelChoice};

use super::{Adapter, Fused, STEP_ROWS, STEP_UNITS, step_groups};

/// Describes the forward and the backward kernel of a plan. `fused` is the plan's choice,
/// `element` is T.
pub(crate) fn of_plan(
    shapes: &Shapes,
    element: Dtype,
    fused: Option<Fused>,
    adapter: Adapter,
    family: Family,
) -> [KernelChoice; 2] {
    let narrow = element != Dtype::F32;
    ["forward", "backward"].map(|pass| match fused {
        Some(fused) => fused_choice(pass, shapes, fused, narrow),
        None => alternating(pass, shapes, adapter, family),
    })
}

fn fused_choice(pass: &'static str, shapes: &Shapes, fused: Fused, narrow: bool) -> KernelChoice {
    let lines = match pass {
        "forward" => fused.forward(shapes, narrow),
        _ => fused.backward(shapes, narrow),
    };
    KernelChoice {
        pass,
        family: "fused",
        units: fused.units,
        rows: fused.rows,
        warps: fused.threads().div_ceil(32),
        blocks: fused.groups(shapes),
        cluster: 1,
        why: match lines.resident == lines.chunks {
            true => "R of a head fits the registers of a workgroup",
            false => "R of a head is small enough to be re-read at every step",
        },
    }
}

fn alternating(
    pass: &'static str,
    shapes: &Shapes,
    adapter: Adapter,
    family: Family,
) -> KernelChoice {
    KernelChoice {
        pass,
        family: "alternating",
        units: STEP_UNITS,
        rows: STEP_ROWS,
        warps: 256 / 32,
        blocks: step_groups(shapes),
        cluster: 1,
        why: match family {
            Family::Alternating => "requested",
            _ => why_not_fused(adapter),
        },
    }
}

/// Returns why an adapter has no fused kernels for a problem.
pub(crate) fn why_not_fused(adapter: Adapter) -> &'static str {
    match adapter.cpu {
        true => {
            "drivers that run on the CPU have fused kernels only in f32 and for heads of up to 8 units"
        }
        false => "R is too large for a workgroup, or a step for its memory",
    }
}

#[cfg(test)]
mod tests {
    use flashrnn_core::{Lstm, Problem};

    use super::*;
    use crate::select::Preferences;
    use crate::select::examples::H200;

    fn kernels(heads: usize, head_dim: usize, family: Family) -> [KernelChoice; 2] {
        let shapes = Problem::new(16, 1, heads, head_dim).shapes::<Lstm>().unwrap();
        let fused =
            Preferences { family, ..Preferences::default() }.fused(&shapes, H200, Dtype::Bf16);
        of_plan(&shapes, Dtype::Bf16, fused, H200, family)
    }

    #[test]
    fn choices_say_what_and_why() {
        let [forward, backward] = kernels(12, 64, Family::Auto);
        assert_eq!((forward.family, forward.blocks, backward.warps), ("fused", 12 * 8, 8));
        assert!(kernels(3, 256, Family::Auto)[1].why.contains("re-read"));
        let large = kernels(2, 1024, Family::Auto)[0].to_string();
        let want = "forward: alternating, one launch per step, 256 blocks";
        assert!(large.starts_with(want), "{large}");
        assert_eq!(kernels(12, 64, Family::Alternating)[0].why, "requested");
    }
}
