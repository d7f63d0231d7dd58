//! The engine of a plan: its sizes and kernels, independent of the element types.

use std::sync::Arc;

use flashrnn_core::{Element, Problem, Result, Shapes, WeightsLayout};
use flashrnn_gpu::Family;

use crate::backend::Cuda;
use crate::kernels::compile::Program;
use crate::kernels::launch::Kernel;
use crate::kernels::threads::{join, spawn};
use crate::packed::{self, PackedOrder};
use crate::passes::Common;
use crate::passes::backward::{BackwardPass, TimeSteps};
use crate::passes::forward::ForwardPass;
use crate::passes::fused::{FusedBackward, FusedForward, FusedProblem};
use crate::passes::grid::GridPass;
use crate::programs::{self, CellSource, Features};
use crate::select::alignment;
use crate::select::choice::{self, Layout, layouts};
use crate::select::grid::{Grid, Pass};
use crate::select::step::{self, Multiply, Tile};

/// Holds the sizes and kernels of a plan.
pub(crate) struct Engine {
    pub common: Common,
    /// The layout of the weights that this plan packs and accepts.
    pub layout: Arc<WeightsLayout<PackedOrder>>,
    pub forward: ForwardPass,
    pub backward: BackwardPass,
    pub pack: Kernel,
}

impl Engine {
    /// Chooses the kernels of a problem and compiles, in parallel, those that are not cached.
    ///
    /// # Errors
    /// [`Error::Unsupported`](flashrnn_core::Error::Unsupported) if the kernels cannot represent
    /// the sizes, or if fused kernels are required and do not fit; any error of compiling or
    /// loading a kernel.
    pub(crate) fn new<T: Element, W: Element>(
        cuda: &Cuda,
        cell: &CellSource,
        problem: &Problem,
        shapes: &Shapes,
    ) -> Result<Self> {
        let Cuda { device, kernels, loops, family, .. } = cuda;
        let common = Common::new::<T>(device, problem, shapes)?;
        let [forward, backward] = layouts(shapes, common.bytes, cuda.gpu(), *family)?;
        let both_fused = [forward, backward].iter().all(|l| matches!(l, Layout::Fused(_)));
        let fused = FusedProblem {
            kernels: kernels.clone(),
            cell: cell.clone(),
            element: common.element,
            bytes: common.bytes,
            shapes: shapes.clone(),
            features: features(cuda, &common, both_fused),
        };
        let element = common.element;
        let multiply = Multiply::new(element, problem.options.tf32);
        let time_loop = |pass, program: &Program, tile: Tile| {
            loops.get(kernels, program, pass, step::blocks(shapes, tile), tile.warps)
        };
        let forward_steps = || {
            let tile = step::forward_tile(shapes, common.bytes);
            time_loop("forward", &programs::forward_step(cell, element, multiply, tile), tile)
        };
        let backward_steps = || {
            let tile = step::backward_tile(shapes, common.bytes);
            time_loop("backward", &programs::backward_step(cell, element, multiply, tile), tile)
        };
        let grid = |layout, pass| grid_pass(cuda, &fused, layout, pass);
        let (forward, backward, recompute, weight_grad) = std::thread::scope(|scope| {
            let forward = spawn(scope, || {
                Ok(match forward {
                    Layout::Fused(layout) => {
                        ForwardPass::Fused(Box::new(FusedForward::new(fused.clone(), layout)?))
                    }
                    Layout::Grid(layout) => match grid(layout, Pass::Forward)? {
                        Some(all) => {
                            ForwardPass::Grid { all: Box::new(all), single: forward_steps()? }
                        }
                        None => ForwardPass::Alternating(forward_steps()?),
                    },
                    Layout::Steps => ForwardPass::Alternating(forward_steps()?),
                })
            });
            let backward = spawn(scope, || {
                Ok(match backward {
                    Layout::Fused(layout) => {
                        TimeSteps::Fused(Box::new(FusedBackward::new(fused.clone(), layout)?))
                    }
                    Layout::Grid(layout) => match grid(layout, Pass::Backward)? {
                        Some(all) => TimeSteps::Grid(Box::new(all)),
                        None => TimeSteps::Alternating(backward_steps()?),
                    },
                    Layout::Steps => TimeSteps::Alternating(backward_steps()?),
                })
            });
            let recompute = programs::recompute(cell, element);
            let recompute = spawn(scope, move || kernels.module(&recompute));
            let weight_grad = kernels.module(&programs::weight_grad(element, W::DTYPE));
            (join(forward), join(backward), join(recompute), weight_grad)
        });
        let (recompute, weight_grad) = (recompute?, weight_grad?);
        Ok(Self {
            layout: packed::layout(&common),
            common,
            forward: forward?,
            backward: BackwardPass::new(backward?, &recompute, &weight_grad)?,
            pack: weight_grad.kernel("pack")?,
        })
    }
}

/// Compiles the grid kernel of a pass. Returns `None` if the GPU has no room for all of its blocks.
///
/// # Errors
/// Any error of compiling or loading a kernel, or
/// [`Error::Unsupported`](flashrnn_core::Error::Unsupported) if there is no room and fused kernels
/// are required.
fn grid_pass(
    cuda: &Cuda,
    fused: &FusedProblem,
    layout: Grid,
    pass: Pass,
) -> Result<Option<GridPass>> {
    let all = GridPass::new(fused.clone(), layout, pass, cuda.wait_limit)?;
    if all.is_none() && cuda.family == Family::Fused {
        return Err(choice::no_fused_kernels("the GPU has no room for all of their blocks"));
    }
    Ok(all)
}

/// Returns the features that every call of a problem's fused kernels needs.
fn features(cuda: &Cuda, common: &Common, both_fused: bool) -> Features {
    let options = &common.problem.options;
    Features {
        clips: options.forward_clip.is_some()
            || options.recurrent_grad_clip.is_some()
            || options.cut_recurrent_grad,
        waits: cuda.waits,
        // Per-step kernels neither write nor read interleaved gates.
        interleaved: both_fused
            && !common.recomputes()
            && alignment::interleaves(&common.shapes, common.bytes),
        ..Features::default()
    }
}
