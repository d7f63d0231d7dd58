//! The choice between fused and per-step kernels, and its description.

use flashrnn_core::{Error, Result, Shapes};
use flashrnn_gpu::{Family, KernelChoice};

use crate::select::Gpu;
use crate::select::fused::{Fused, fused_backward, fused_forward, too_many_tensors};
use crate::select::grid::{Grid, MAX_BATCH, MIN_STEPS, Pass, THREADS, grid};
use crate::select::step::{Tile, backward_tile, blocks, forward_tile};

/// The kernels of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Fused kernels, whose blocks are alone with a head or share it in a cluster.
    Fused(Fused),
    /// Fused kernels whose blocks share a head over the whole GPU.
    Grid(Grid),
    /// Per-step kernels.
    Steps,
}

/// Returns the kernels of both passes.
///
/// # Errors
/// [`Error::Unsupported`] if `family` requires fused kernels and one of them does not fit.
pub(crate) fn layouts(
    shapes: &Shapes,
    element_bytes: usize,
    gpu: Gpu,
    family: Family,
) -> Result<[Layout; 2]> {
    if family == Family::Alternating {
        return Ok([Layout::Steps; 2]);
    }
    let layout = |fused: Option<Fused>, pass| match fused {
        Some(fused) if in_one_wave(&fused, shapes, gpu) => Some(Layout::Fused(fused)),
        _ => {
            let grid = grid(shapes, element_bytes, gpu, pass).map(Layout::Grid);
            grid.or(fused.map(Layout::Fused))
        }
    };
    let chosen = [
        layout(fused_forward(shapes, element_bytes, gpu), Pass::Forward),
        layout(fused_backward(shapes, element_bytes, gpu), Pass::Backward),
    ];
    if family == Family::Fused && chosen.contains(&None) {
        return Err(no_fused_kernels(why_not_fused(shapes, element_bytes, gpu)));
    }
    Ok(chosen.map(|layout| layout.unwrap_or(Layout::Steps)))
}

/// Returns the error of a plan that requires fused kernels and cannot have them.
pub(crate) fn no_fused_kernels(why: &str) -> Error {
    let what = "fused kernels for this problem".into();
    Error::Unsupported { backend: "cuda", what, why: why.into() }
}

/// Returns whether the GPU runs all clusters at the same time, as far as that matters: a second
/// wave of clusters of 16 blocks takes longer than a grid kernel.
fn in_one_wave(fused: &Fused, shapes: &Shapes, gpu: Gpu) -> bool {
    fused.blocks <= 8 || fused.grid(shapes) / fused.blocks <= gpu.clusters_of(fused.blocks)
}

/// Describes the kernels of the forward and the backward pass.
pub(crate) fn describe(
    shapes: &Shapes,
    element_bytes: usize,
    gpu: Gpu,
    family: Family,
) -> [KernelChoice; 2] {
    let why = match family {
        Family::Alternating => "requested",
        Family::Auto | Family::Fused => why_not_fused(shapes, element_bytes, gpu),
    };
    let layouts = layouts(shapes, element_bytes, gpu, family).unwrap_or([Layout::Steps; 2]);
    let [forward_layout, backward_layout] = layouts;
    let tiles = [forward_tile(shapes, element_bytes), backward_tile(shapes, element_bytes)];
    [("forward", forward_layout, tiles[0]), ("backward", backward_layout, tiles[1])].map(
        |(pass, layout, tile)| match layout {
            Layout::Fused(layout) => fused(pass, shapes, layout),
            Layout::Grid(layout) => over_the_grid(pass, shapes, layout),
            Layout::Steps => alternating(pass, shapes, tile, why),
        },
    )
}

fn over_the_grid(pass: &'static str, shapes: &Shapes, layout: Grid) -> KernelChoice {
    KernelChoice {
        pass,
        family: "grid",
        units: layout.units,
        rows: layout.rows,
        warps: THREADS / 32,
        blocks: layout.grid(shapes),
        cluster: layout.cluster,
        why: "R fits the chip, but not the registers of a cluster",
    }
}

fn fused(pass: &'static str, shapes: &Shapes, layout: Fused) -> KernelChoice {
    KernelChoice {
        pass,
        family: "fused",
        units: layout.units,
        rows: layout.rows,
        warps: layout.threads() / 32,
        blocks: layout.grid(shapes),
        cluster: layout.blocks,
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
        blocks: blocks(shapes, tile),
        cluster: 1,
        why,
    }
}

fn why_not_fused(shapes: &Shapes, element_bytes: usize, gpu: Gpu) -> &'static str {
    let longer = Shapes { time: shapes.time.max(MIN_STEPS), ..*shapes };
    if shapes.batch == 0 || shapes.recurrent == 0 {
        "nothing passes through R"
    } else if too_many_tensors(shapes) {
        "a fused kernel has at most 16 states and 16 gates"
    } else if element_bytes == 4 {
        "R does not fit the registers of a cluster; with 16-bit elements it may use the whole GPU"
    } else if shapes.batch > MAX_BATCH {
        "R does not fit the registers of a cluster, and the batch is too large for the whole GPU"
    } else if grid(&longer, element_bytes, gpu, Pass::Backward).is_some() {
        "R does not fit the registers of a cluster, and the call is too short for the whole GPU"
    } else {
        "R does not fit the registers and the shared memory of the whole GPU"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{Lstm, Problem};

    const H200: Gpu = Gpu::H200;

    #[test]
    fn choices_say_what_and_why() {
        let shapes =
            |heads, head_dim| Problem::new(16, 1, heads, head_dim).shapes::<Lstm>().unwrap();
        let choices = |shapes: Shapes, bytes| describe(&shapes, bytes, H200, Family::Auto);
        let [small, _] = choices(shapes(12, 64), 2);
        assert_eq!((small.family, small.blocks), ("fused", 12 * 4 * small.cluster));
        let [_, f32] = choices(shapes(3, 256), 4);
        assert_eq!((f32.family, f32.cluster), ("alternating", 1));
        assert!(f32.to_string().contains("does not fit"), "{f32}");
        let long = Problem::new(16, 1024, 1, 768).shapes::<Lstm>().unwrap();
        let [_, over_the_grid] = choices(long, 2).map(|choice| choice.to_string());
        let want = "backward: grid, many steps per launch, 96 blocks in clusters of 4 of 16 units by 8 rows";
        assert!(over_the_grid.starts_with(want), "{over_the_grid}");
        let [large, _] = choices(shapes(1, 4096), 2).map(|choice| choice.to_string());
        let want = "forward: alternating, one launch per step, 512 blocks";
        assert!(large.starts_with(want), "{large}");
        assert!(large.contains("does not fit") && !large.contains("too short"), "{large}");
        let [short, _] = choices(shapes(1, 1024), 2).map(|choice| choice.to_string());
        assert!(short.contains("too short"), "{short}");
    }

    #[test]
    fn the_family_decides_where_the_problem_allows_it() {
        let small = Problem::new(16, 1, 12, 64).shapes::<Lstm>().unwrap();
        let large = Problem::new(16, 1, 1, 4096).shapes::<Lstm>().unwrap();
        let alternating = describe(&small, 2, H200, Family::Alternating);
        assert!(alternating.iter().all(|c| (c.family, c.why) == ("alternating", "requested")));
        assert!(layouts(&small, 2, H200, Family::Fused).is_ok());
        let refused = layouts(&large, 2, H200, Family::Fused);
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    }
}
