//! What a plan runs with: kernels and sizes. Its methods are in the files of the passes.

use std::sync::Arc;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use bytemuck::Pod;
use flashrnn_core::{Dtype, Element, Error, Layout, Problem, Result, Save, Shapes, WeightsLayout};
use flashrnn_gpu::Family;

use crate::call::{Address, Gates, Sizes};
use crate::device::{Cuda, Device};
use crate::kernels::launch::Kernel;
use crate::memory::{View, ViewMut};
use crate::passes::fused::{FusedBackward, FusedForward, FusedProblem};
use crate::passes::pack::PackedOrder;
use crate::passes::time_loop::TimeLoop;
use crate::programs::{self, CellSource, Uses};
use crate::select::choice;
use crate::select::fused::{self as spread, Fused};
use crate::select::step::{self as select, Multiply};

/// What a plan runs with: the kernels and sizes, whatever the element types.
pub(crate) struct Engine {
    pub device: Arc<Device>,
    pub problem: Problem,
    pub shapes: Shapes,
    pub sizes: Sizes,
    /// The key of the weights that this plan packs.
    pub layout: Arc<WeightsLayout<PackedOrder>>,
    pub element: Dtype,
    /// The bytes of a `T`.
    pub bytes: usize,
    /// D rounded up to whole chunks of the kernels.
    pub depth: usize,
    pub forward: Arc<TimeLoop>,
    /// Used in place of `forward` where the head fits a cluster.
    pub fused_forward: Option<FusedForward>,
    pub backward: Arc<TimeLoop>,
    /// As `fused_forward`.
    pub fused_backward: Option<FusedBackward>,
    pub previous_h: Kernel,
    pub pad: Kernel,
    pub gates_again: Kernel,
    pub column_sums: Kernel,
    pub pack: Kernel,
    pub reduce: Kernel,
    pub addresses: Kernel,
}

impl Engine {
    pub(crate) fn new<T: Element, W: Element>(
        cuda: &Cuda,
        cell: &CellSource,
        problem: &Problem,
        shapes: &Shapes,
    ) -> Result<Self> {
        let (element, bytes) = (T::DTYPE, size_of::<T>());
        let depth = select::depth(shapes.head_dim, bytes);
        let sizes = sizes(problem, shapes, depth)?;
        let multiply = Multiply::new(element, problem.options.tf32);
        let (device, loops) = (&cuda.device, &cuda.loops);
        // Each compiles where no cache has it: together, since a user waits for all of them.
        let (family, gpu) = (cuda.family, device.shared.gpu());
        let (fused_forward, fused_backward) =
            (spread::fused_forward(shapes, bytes, gpu), spread::fused_backward(shapes, bytes, gpu));
        if family == Family::Fused && (fused_forward.is_none() || fused_backward.is_none()) {
            let choices =
                [choice::forward(shapes, bytes, gpu), choice::backward(shapes, bytes, gpu)];
            let why = choices
                .iter()
                .find(|choice| choice.family != "fused")
                .map_or("", |choice| choice.why);
            let what = "fused kernels for this problem".into();
            return Err(Error::Unsupported { backend: "cuda", what, why: why.into() });
        }
        let clips =
            problem.options.forward_clip.is_some() || problem.options.recurrent_grad_clip.is_some();
        let clips = clips || problem.options.cut_recurrent_grad;
        let uses = Uses { clips, waits: cuda.waits, ..Uses::default() };
        let wanted = |fused: Option<Fused>| fused.filter(|_| family != Family::Alternating);
        // Saved gates are read by the family that wrote them.
        let both = wanted(fused_forward).is_some() && wanted(fused_backward).is_some();
        let interleaved = both && !recompute(problem) && spread::interleaves(shapes, bytes);
        let uses = Uses { interleaved, ..uses };
        let fused = FusedProblem { device, cell, element, bytes, shapes, uses };
        let (forward, fused_forward, backward, fused_backward, tokens, weights) =
            std::thread::scope(|scope| {
                let forward = spawn(scope, || {
                    let tile = select::forward_tile(shapes, bytes);
                    let program = programs::forward_step(cell, element, multiply, tile);
                    loops.get(device, &program, "forward", select::blocks(shapes, tile), tile.warps)
                });
                let fused_forward = spawn(scope, || {
                    wanted(fused_forward)
                        .map(|layout| FusedForward::new(&fused, layout))
                        .transpose()
                });
                let fused_backward = spawn(scope, || {
                    wanted(fused_backward)
                        .map(|layout| FusedBackward::new(&fused, layout))
                        .transpose()
                });
                let backward = spawn(scope, || {
                    let tile = select::backward_tile(shapes, bytes);
                    let program = programs::backward_step(cell, element, multiply, tile);
                    loops.get(
                        device,
                        &program,
                        "backward",
                        select::blocks(shapes, tile),
                        tile.warps,
                    )
                });
                let tokens = spawn(scope, || device.module(&programs::tokens(cell, element)));
                let weights = device.module(&programs::weights(element, W::DTYPE));
                (
                    joined(forward),
                    joined(fused_forward),
                    joined(backward),
                    joined(fused_backward),
                    joined(tokens),
                    weights,
                )
            });
        let (tokens, weights) = (tokens?, weights?);
        Ok(Self {
            device: device.clone(),
            problem: problem.clone(),
            shapes: shapes.clone(),
            sizes,
            layout: Arc::new(WeightsLayout {
                recurrent: shapes.recurrent,
                gates: shapes.gates,
                heads: shapes.heads,
                head_dim: shapes.head_dim,
                order: PackedOrder::new(depth, device),
            }),
            element,
            bytes,
            depth,
            forward: forward?,
            fused_forward: fused_forward?,
            backward: backward?,
            fused_backward: fused_backward?,
            previous_h: tokens.kernel("previous_h")?,
            pad: tokens.kernel("pad")?,
            gates_again: tokens.kernel("recompute_gates")?,
            column_sums: tokens.kernel("column_sums")?,
            pack: weights.kernel("pack")?,
            reduce: weights.kernel("reduce")?,
            addresses: weights.kernel("addresses")?,
        })
    }

    /// Where the two parts of a tensor of all gates lie: `[tokens, Gx, N, D]`, then `[tokens, G -
    /// Gx, N, D]`. Gates that fused kernels save side by side (`spread::interleaves`) have no parts
    /// and begin at the first.
    pub fn gates_at(&self, address: Address) -> Gates {
        let external =
            self.shapes.tokens() * self.shapes.external * self.shapes.units() * self.bytes;
        Gates { external: address, inner: address + external as Address }
    }

    /// Where wide states and wide gates lie in `saved.wide`: `[WIDE, tokens, N, D]`, then
    /// `[WIDE_GATES, tokens, N, D]`.
    pub fn wide_at(&self, address: Address) -> (Address, Address) {
        let states =
            self.shapes.wide.len() * self.shapes.tokens() * self.shapes.units() * size_of::<f32>();
        (address, address + states as Address)
    }
}

/// Starts `work` on a thread of its own.
///
/// # Errors
/// [`Error::Device`] where the system has no thread to spare.
pub(crate) fn spawn<'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> Result<R> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<R>>> {
    let started = Builder::new().spawn_scoped(scope, work);
    started.map_err(|e| Error::device_because("could not start a thread that compiles kernels", e))
}

/// Waits for what [`spawn`] started.
pub(crate) fn joined<R>(thread: Result<ScopedJoinHandle<'_, Result<R>>>) -> Result<R> {
    thread?.join().unwrap_or_else(|_| Err(Error::device("a thread that compiles kernels panicked")))
}

/// The sizes of a problem as the kernels read them.
fn sizes(problem: &Problem, shapes: &Shapes, depth: usize) -> Result<Sizes> {
    let fits = |option: &'static str, n: usize| {
        i32::try_from(n).map_err(|_| Error::Unsupported {
            backend: "cuda",
            what: format!("{option} {n}"),
            why: "at most 2147483647".into(),
        })
    };
    // k goes over all recurrent gates in the backward pass.
    fits("Gr times head_dim", shapes.recurrent.saturating_mul(depth))?;
    Ok(Sizes {
        batch: fits("batch", shapes.batch)?,
        time: fits("time", shapes.time)?,
        heads: fits("heads", shapes.heads)?,
        head_dim: fits("head_dim", shapes.head_dim)?,
        depth: fits("head_dim", depth)?,
        time_major: (shapes.layout == Layout::TimeMajor).into(),
        reverse: problem.options.reverse.into(),
    })
}

/// A clip as the kernels read it: infinity for none.
pub(crate) fn clip(v: Option<f64>) -> f32 {
    v.map_or(f32::INFINITY, |v| v as f32)
}

/// The address of a tensor that may be absent.
pub(crate) fn address<P: Pod + Send + Sync>(view: &Option<View<'_, P>>) -> Address {
    view.as_ref().map_or(0, |view| view.ptr())
}

/// The address of an output that may be absent.
pub(crate) fn address_mut<P: Pod + Send + Sync>(view: &Option<ViewMut<'_, P>>) -> Address {
    view.as_ref().map_or(0, |view| view.ptr())
}

/// Whether the backward pass computes the gates again.
pub(crate) fn recompute(problem: &Problem) -> bool {
    problem.options.save == Save::Recompute
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::Lstm;

    #[test]
    fn sizes_beyond_32_bits_are_refused_where_a_plan_is_made() {
        let problem = Problem::new(1 << 31, 1, 1, 1);
        let refused = sizes(&problem, &problem.shapes::<Lstm>().unwrap(), 16);
        assert!(
            matches!(refused, Err(Error::Unsupported { what, .. }) if what == "batch 2147483648")
        );
    }
}
