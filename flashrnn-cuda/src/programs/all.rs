//! The programs of a cell that a test compiles.

use flashrnn_core::{Cell, Dtype, Problem};

use super::sources::{
    CellSource, Features, backward_step, bytes, forward_step, fused_backward, fused_forward, grid,
    recompute, weight_grad,
};
use crate::kernels::compile::Program;
use crate::select::Gpu;
use crate::select::alignment::interleaves;
use crate::select::fused as fused_layouts;
use crate::select::grid::{self as grid_layouts, Pass};
use crate::select::step::{self, Multiply};

/// Returns the programs of a cell for a test that compiles all kernels. For each element type,
/// these are the per-step kernels with every tile that [`step`](mod@step) can choose, for any
/// batch, head dimension and number of gates, and the fused kernels for a selection of head
/// dimensions.
pub fn all<C: Cell>(cell: &C, gpu: Gpu) -> Vec<Program> {
    let cell = CellSource::new(cell);
    let mut list = Vec::new();
    for element in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
        list.extend(fused_programs::<C>(&cell, element, gpu));
        list.extend(grid_programs::<C>(&cell, element, gpu));
    }
    for element in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        list.push(recompute(&cell, element));
        for weight in [element, Dtype::F32] {
            list.push(weight_grad(element, weight));
        }
        for tf32 in [false, true] {
            let multiply = Multiply::new(element, tf32);
            for (batch, head_dim) in [(1, 16), (1, 4096), (16, 16), (16, 4096)] {
                let problem = Problem::new(batch, 1, 1, head_dim);
                let Ok(shapes) = problem.shapes::<C>() else { continue };
                let bytes = bytes(element);
                let (forward, backward) =
                    (step::forward_tile(&shapes, bytes), step::backward_tile(&shapes, bytes));
                list.push(forward_step(&cell, element, multiply, forward));
                list.push(backward_step(&cell, element, multiply, backward));
            }
        }
    }
    let mut unique: Vec<Program> = Vec::new();
    for program in list {
        if !unique.contains(&program) {
            unique.push(program);
        }
    }
    unique
}

/// Returns the fused programs for head dimensions whose rows have every alignment, both in one
/// block and in clusters.
fn fused_programs<C: Cell>(cell: &CellSource, element: Dtype, gpu: Gpu) -> Vec<Program> {
    let head_dims = match element {
        Dtype::F32 => &[33, 50, 128][..],
        Dtype::F16 => &[33, 64, 256, 512],
        _ => &[33, 50, 64, 100, 256, 257, 300, 512],
    };
    let mut list = Vec::new();
    for &head_dim in head_dims {
        let Ok(shapes) = Problem::new(16, 1, 3, head_dim).shapes::<C>() else { continue };
        let bytes = bytes(element);
        // No features, those of training without options, and all features.
        let interleaved = interleaves(&shapes, bytes);
        let training = Features { saves: true, interleaved, ..Features::default() };
        let all = Features { ragged: true, clips: true, ..training };
        for features in [Features::default(), training, all] {
            if let Some(layout) = fused_layouts::fused_forward(&shapes, bytes, gpu) {
                list.push(fused_forward(cell, element, &shapes, layout, features));
            }
            let backward = fused_layouts::fused_backward(&shapes, bytes, gpu);
            if let Some(layout) = backward.filter(|_| features.saves) {
                list.push(fused_backward(cell, element, &shapes, layout, features));
            }
        }
    }
    list
}

/// Returns the grid programs for small and large heads, and for few and many rows: with all
/// features, and for one problem with none.
fn grid_programs<C: Cell>(cell: &CellSource, element: Dtype, gpu: Gpu) -> Vec<Program> {
    let problems = match element {
        Dtype::Bf16 => &[(5, 3), (33, 50), (16, 768), (1, 1024), (64, 1024), (16, 2048)][..],
        _ => &[(16, 768)],
    };
    let mut list = Vec::new();
    for &(batch, head_dim) in problems {
        let Ok(shapes) = Problem::new(batch, 64, 1, head_dim).shapes::<C>() else { continue };
        // Without clusters, small heads are left to the grid kernels too.
        let gpu = Gpu { cluster: 0, ..gpu };
        for pass in [Pass::Forward, Pass::Backward] {
            let Some(layout) = grid_layouts::grid(&shapes, bytes(element), gpu, pass) else {
                continue;
            };
            let all = Features { ragged: true, clips: true, ..Features::default() };
            list.push(grid(cell, element, &shapes, layout, pass, all));
            if head_dim == 768 {
                list.push(grid(cell, element, &shapes, layout, pass, Features::default()));
            }
        }
    }
    list
}
