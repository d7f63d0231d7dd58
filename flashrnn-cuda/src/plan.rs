//! The backend and its plans: checks, and the way from the public interface to the kernels.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use flashrnn_core::{
    Backend, Backward, Cell, Dtype, Element, Error, Forward, Info, Layout, Plan, Problem, Result, Save,
    Saved, Shapes, Step, Weights, WeightsLayout, Workspace,
};

use crate::call::{Address, Gates, Sizes};
use crate::choice::KernelChoice;
use crate::device::{Cuda, Device, Family};
use crate::fused::{FusedBackward, FusedForward};
use crate::launch::Kernel;
use crate::memory::{Buffer, View, ViewMut};
use crate::packed::{Packed, PackedOrder};
use crate::programs::{self, CellSource, Uses};
use crate::select::{self, Multiply};
use crate::spread::{self, Fused};
use crate::time_loop::TimeLoop;

impl Backend for Cuda {
    type Buffer<P: Pod + Send + Sync> = Buffer<P>;
    type View<'a, P: Pod + Send + Sync> = View<'a, P>;
    type ViewMut<'a, P: Pod + Send + Sync> = ViewMut<'a, P>;
    type Packed<T: Element> = Packed<T>;
    type PackedOrder = PackedOrder;
    type Plan<T: Element, W: Element> = CudaPlan<T, W>;

    fn info(&self) -> Info {
        let device = format!("{}, {}", self.name(), self.arch());
        Info { name: "cuda", device, dtypes: vec![Dtype::F32, Dtype::Bf16, Dtype::F16] }
    }

    fn checks_lengths(&self) -> bool {
        false
    }

    fn alloc<P: Pod + Send + Sync>(&self, len: usize) -> Result<Buffer<P>> {
        self.device.zeroed(len)
    }

    fn upload<P: Pod + Send + Sync>(&self, data: &[P]) -> Result<Buffer<P>> {
        self.device.upload(data)
    }

    fn download<P: Pod + Send + Sync>(&self, view: View<'_, P>) -> Result<Vec<P>> {
        self.device.download(view)
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn trim(&self) -> Result<()> {
        self.device.trim()
    }

    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Buffer<P>) -> View<'a, P> {
        buffer.view()
    }

    fn view_mut<'a, P: Pod + Send + Sync>(&self, buffer: &'a mut Buffer<P>) -> ViewMut<'a, P> {
        buffer.view_mut()
    }

    fn plan<T: Element, W: Element, C: Cell>(&self, cell: &C, problem: &Problem) -> Result<CudaPlan<T, W>> {
        let shapes = problem.shapes::<C>()?;
        if !self.info().dtypes.contains(&T::DTYPE) {
            let (what, why) = (format!("tensors of {}", T::DTYPE), "they are f32, bf16 or f16".into());
            return Err(Error::Unsupported { backend: "cuda", what, why });
        }
        if W::DTYPE != T::DTYPE && W::DTYPE != Dtype::F32 {
            let what = format!("weights of {} with tensors of {}", W::DTYPE, T::DTYPE);
            let why = "weights have the tensors' type, or f32 beside 16-bit tensors".into();
            return Err(Error::Unsupported { backend: "cuda", what, why });
        }
        let _entered = self.device.enter()?;
        let engine = Engine::new::<T, W>(self, &CellSource::new(cell), problem, &shapes)?;
        Ok(CudaPlan { cuda: self.clone(), engine, weights: PhantomData })
    }
}

/// What a plan runs with: the kernels and sizes, whatever the element types.
pub(crate) struct Engine {
    pub device: Arc<Device>,
    pub problem: Problem,
    pub shapes: Shapes,
    pub sizes: Sizes,
    pub layout: Arc<WeightsLayout<PackedOrder>>,
    pub element: Dtype,
    /// The bytes of a `T`.
    pub bytes: usize,
    /// D rounded up to whole chunks of the kernels.
    pub depth: usize,
    pub forward: Arc<TimeLoop>,
    /// Instead of `forward`, where it can be.
    pub fused_forward: Option<FusedForward>,
    pub backward: Arc<TimeLoop>,
    /// Instead of `backward`, where it can be.
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
    fn new<T: Element, W: Element>(
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
                [KernelChoice::forward(shapes, bytes, gpu), KernelChoice::backward(shapes, bytes, gpu)];
            let why = choices.iter().find(|choice| choice.family != "fused").map_or("", |choice| choice.why);
            let what = "fused kernels for this problem".into();
            return Err(Error::Unsupported { backend: "cuda", what, why: why.into() });
        }
        let clips = problem.options.forward_clip.is_some() || problem.options.recurrent_grad_clip.is_some();
        let clips = clips || problem.options.cut_recurrent_grad;
        let uses = Uses { clips, waits: cuda.waits, ..Uses::default() };
        let wanted = |fused: Option<Fused>| fused.filter(|_| family != Family::Alternating);
        let (forward, fused_forward, backward, fused_backward, tokens, weights) =
            std::thread::scope(|scope| {
                let forward = scope.spawn(|| {
                    let tile = select::forward_tile(shapes, bytes);
                    let program = programs::forward_step(cell, element, multiply, tile);
                    loops.get(device, &program, "forward", select::blocks(shapes, tile), tile.warps)
                });
                let fused_forward = scope.spawn(|| {
                    wanted(fused_forward)
                        .map(|fused| FusedForward::new(device, cell, (element, bytes), shapes, fused, uses))
                        .transpose()
                });
                let fused_backward = scope.spawn(|| {
                    wanted(fused_backward)
                        .map(|fused| FusedBackward::new(device, cell, (element, bytes), shapes, fused, uses))
                        .transpose()
                });
                let backward = scope.spawn(|| {
                    let tile = select::backward_tile(shapes, bytes);
                    let program = programs::backward_step(cell, element, multiply, tile);
                    loops.get(device, &program, "backward", select::blocks(shapes, tile), tile.warps)
                });
                let tokens = scope.spawn(|| device.module(&programs::tokens(cell, element)));
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
            gates_again: tokens.kernel("gates_again")?,
            column_sums: tokens.kernel("column_sums")?,
            pack: weights.kernel("pack")?,
            reduce: weights.kernel("reduce")?,
            addresses: weights.kernel("addresses")?,
        })
    }

    /// Where the two parts of a tensor of all gates lie: `[tokens, Gx, N, D]`, then `[tokens, G - Gx, N, D]`.
    pub fn gates_at(&self, address: Address) -> Gates {
        let external = self.shapes.tokens() * self.shapes.external * self.shapes.units() * self.bytes;
        Gates { external: address, inner: address + external as Address }
    }

    /// Where wide states and wide gates lie in `saved.wide`: `[WIDE, tokens, N, D]`, then `[WIDE_GATES, tokens, N, D]`.
    pub fn wide_at(&self, address: Address) -> (Address, Address) {
        let states = self.shapes.wide.len() * self.shapes.tokens() * self.shapes.units() * size_of::<f32>();
        (address, address + states as Address)
    }
}

pub(crate) fn joined<R>(thread: std::thread::ScopedJoinHandle<'_, Result<R>>) -> Result<R> {
    thread.join().unwrap_or_else(|_| Err(Error::Device("a thread that compiles kernels panicked".into())))
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

/// Checks that the device may use each of a call's tensors that are there.
macro_rules! check_device {
    ($device:expr, $call:expr, $($tensor:ident),*) => {
        $(if let Some(view) = &$call.$tensor {
            view.check(stringify!($tensor), $device)?;
        })*
    };
}

/// A problem made ready to run on a CUDA device.
pub struct CudaPlan<T: Element, W: Element> {
    cuda: Cuda,
    engine: Engine,
    weights: PhantomData<fn() -> (T, W)>,
}

impl<T: Element, W: Element> CudaPlan<T, W> {
    /// The backend that made this plan.
    pub fn backend(&self) -> &Cuda {
        &self.cuda
    }

    /// The kernels of the forward and the backward pass.
    #[must_use]
    pub fn kernels(&self) -> [KernelChoice; 2] {
        let Engine { device, shapes, bytes, .. } = &self.engine;
        match self.cuda.family {
            Family::Alternating => [
                KernelChoice::alternating_forward(shapes, *bytes, "asked for"),
                KernelChoice::alternating_backward(shapes, *bytes, "asked for"),
            ],
            Family::Auto | Family::Fused => [
                KernelChoice::forward(shapes, *bytes, device.shared.gpu()),
                KernelChoice::backward(shapes, *bytes, device.shared.gpu()),
            ],
        }
    }
}

impl<T: Element, W: Element> fmt::Debug for CudaPlan<T, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaPlan")
            .field("cuda", &self.cuda)
            .field("problem", &self.engine.problem)
            .field("tensors", &T::DTYPE)
            .field("weights", &W::DTYPE)
            .field("kernels", &self.kernels().each_ref().map(ToString::to_string))
            .finish_non_exhaustive()
    }
}

impl<T: Element, W: Element> Plan<T, W> for CudaPlan<T, W> {
    type Backend = Cuda;

    fn problem(&self) -> &Problem {
        &self.engine.problem
    }

    fn shapes(&self) -> &Shapes {
        &self.engine.shapes
    }

    fn weights_layout(&self) -> &Arc<WeightsLayout<PackedOrder>> {
        &self.engine.layout
    }

    fn pack(&self, r: View<'_, W>, b: View<'_, W>) -> Result<Weights<Cuda, T>> {
        Shapes::check("r", r.len(), &self.engine.shapes.r())?;
        Shapes::check("b", b.len(), &self.engine.shapes.b())?;
        let device = &self.engine.device;
        r.check("r", device)?;
        b.check("b", device)?;
        let _entered = device.enter()?;
        Ok(Weights::new(self.engine.layout.clone(), self.engine.pack(r.ptr(), b.ptr())?))
    }

    fn saved(&self) -> Result<Saved<Cuda, T>> {
        Saved::new(&self.cuda, &self.engine.shapes, self.engine.problem.options.save)
    }

    fn forward_workspace(&self) -> Workspace {
        self.engine.forward_workspace()
    }

    fn backward_workspace(&self) -> Workspace {
        self.engine.backward_workspace()
    }

    fn forward(&self, call: Forward<'_, Cuda, T>) -> Result<()> {
        call.check::<W>(self)?;
        let device = &self.engine.device;
        call.wx.check("wx", device)?;
        check_device!(device, call, s0, lengths, resets, h, states, last, workspace);
        if let Some(saved) = &call.saved {
            saved.gates.check("saved", device)?;
            saved.wide.check("saved", device)?;
        }
        let _entered = device.enter()?;
        self.engine.forward(call)
    }

    fn backward(&self, call: Backward<'_, Cuda, T, W>) -> Result<()> {
        call.check(self)?;
        let device = &self.engine.device;
        call.states.check("states", device)?;
        call.saved.gates.check("saved", device)?;
        call.saved.wide.check("saved", device)?;
        call.d_wx.check("d_wx", device)?;
        check_device!(
            device, call, wx, s0, lengths, resets, d_h, d_states, d_last, d_r, d_b, d_s0, workspace
        );
        let _entered = device.enter()?;
        self.engine.backward(call)
    }

    fn step(&self, call: Step<'_, Cuda, T>) -> Result<()> {
        call.check::<W>(self)?;
        let device = &self.engine.device;
        call.wx.check("wx", device)?;
        call.state.check("state", device)?;
        check_device!(device, call, h);
        let _entered = device.enter()?;
        self.engine.step(call)
    }
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
        assert!(matches!(refused, Err(Error::Unsupported { what, .. }) if what == "batch 2147483648"));
    }
}
