//! The engine of a plan: its kernels and sizes, whatever the element types.

use std::sync::{Arc, OnceLock};

use flashrnn_core::{
    Dtype, Element, Layout as Order, Problem, Result, Save, Shapes, WeightsLayout,
};
use flashrnn_gpu::Family;

use crate::backend::Wgpu;
use crate::call::Params;
use crate::device::Device;
use crate::kernels::{Bound, Call, Kernel};
use crate::memory::scratch::{self, Pool, Scratch};
use crate::memory::{View, ViewMut};
use crate::passes::pack::{PackedOrder, layout};
use crate::programs::Common;
use crate::select::choice::why_not_fused;
use crate::select::limits::{check_limits, check_loops, check_scratch, unsupported};
use crate::select::{self, Adapter, Fused, Gradient};

/// What a plan runs with: the kernels and sizes, whatever the element types.
pub(crate) struct Engine {
    pub device: Arc<Device>,
    pub problem: Problem,
    pub shapes: Shapes,
    /// What the kernels were chosen for.
    pub adapter: Adapter,
    /// `None`: the two kernels of the time steps are the alternating ones.
    pub fused: Option<Fused>,
    /// For tensors that begin at an even element.
    forward_steps: Arc<Kernel>,
    /// The most steps of the backward pass at a time: all, or those whose gates are computed again
    /// together.
    pub gates_steps: usize,
    /// Whose packed weights the kernels read.
    pub layout: Arc<WeightsLayout<PackedOrder>>,
    pub pack: Arc<Kernel>,
    pub pack_fused: Option<Arc<Kernel>>,
    pub common: Common,
    /// Compiled by the first backward pass: inference needs none of it.
    backward: OnceLock<BackwardKernels>,
    /// What calls without a workspace work in.
    pub pool: Arc<Pool>,
}

/// The kernels of the backward pass.
pub(crate) struct BackwardKernels {
    /// For tensors that begin at an even element.
    steps: Arc<Kernel>,
    /// With [`Save::Recompute`].
    pub gates_again: Option<Arc<Kernel>>,
    /// And how wide its tiles are; for tensors that begin at an even element.
    weight_gradient: (Arc<Kernel>, usize),
    pub bias_gradient: Arc<Kernel>,
    pub reduce: Arc<Kernel>,
}

impl Engine {
    /// Compiles the kernels of the forward pass for a cell that was printed in WGSL: its sizes and
    /// functions.
    pub fn new<T: Element, W: Element>(
        Wgpu { device, choice }: &Wgpu,
        [sizes, functions]: [String; 2],
        problem: &Problem,
        shapes: &Shapes,
    ) -> Result<Self> {
        let adapter = choice.adapter(device.adapter());
        let fused = choice.fused(shapes, adapter, T::DTYPE);
        check_limits(device.most_bytes(), shapes, problem, T::DTYPE, fused)?;
        check_loops(shapes, || device.long_loops())?;
        let workgroup = adapter.workgroup_bytes;
        let chunk = select::chunk(shapes.recurrent, workgroup).ok_or_else(|| {
            unsupported(
                format!("{} recurrent gates", shapes.recurrent),
                format!("the workgroup memory holds {workgroup} bytes"),
            )
        })?;
        let recompute = problem.options.save == Save::Recompute;
        let unpacks = T::DTYPE == Dtype::F16 && device.unpacks()?;
        let subgroups = fused.is_none() && adapter.subgroups() && device.subgroups()?;
        let subgroup = if subgroups { adapter.subgroup } else { 1 };
        let common = Common {
            sizes,
            functions,
            element: T::DTYPE,
            weight: W::DTYPE,
            unpacks,
            adapter: Adapter { subgroup, ..adapter },
            chunk,
            recompute,
        };
        if fused.is_none() && choice.family == Family::Fused {
            return Err(unsupported(
                "fused kernels for this problem".into(),
                why_not_fused(adapter).into(),
            ));
        }
        let words = adapter.words(shapes.head_dim);
        let engine = Self {
            device: device.clone(),
            problem: problem.clone(),
            shapes: shapes.clone(),
            adapter,
            fused,
            forward_steps: steps(device, &common, fused, shapes, Pass::Forward, words)?,
            gates_steps: match problem.options.save {
                Save::Gates => shapes.time,
                Save::Recompute => {
                    select::gates_steps(shapes.time, shapes.gates * shapes.batch * shapes.units())
                }
            },
            layout: layout(device, shapes, fused),
            pack: Kernel::get(device, &common.pack(), "pack")?,
            pack_fused: fused
                .map(|fused| Kernel::get(device, &common.pack_fused(fused, shapes), "pack_fused"))
                .transpose()?,
            common,
            backward: OnceLock::new(),
            pool: device.pool(),
        };
        check_scratch(device.limits.max_buffer_size, &engine.backward_regions())?;
        Ok(engine)
    }

    /// The kernels of the backward pass.
    pub fn backward_kernels(&self) -> Result<&BackwardKernels> {
        if let Some(kernels) = self.backward.get() {
            return Ok(kernels);
        }
        let (device, common) = (&self.device, &self.common);
        let head_dim = self.shapes.head_dim;
        let words = common.adapter.words(head_dim);
        let gradients = common.gradients(Gradient::new(head_dim, common.adapter), words);
        let kernels = BackwardKernels {
            steps: steps(device, common, self.fused, &self.shapes, Pass::Backward, words)?,
            gates_again: common
                .recompute
                .then(|| Kernel::get(device, &common.gates_again(), "gates_again"))
                .transpose()?,
            weight_gradient: weight_gradient(device, common, head_dim, words)?,
            bias_gradient: Kernel::get(device, &gradients, "bias_gradient")?,
            reduce: Kernel::get(device, &common.reduce(), "reduce")?,
        };
        self.save_pipelines();
        Ok(self.backward.get_or_init(|| kernels))
    }

    /// The kernel of the time steps, for tensors that begin where `params` says.
    pub fn forward_steps(&self, params: &Params) -> Result<Arc<Kernel>> {
        let firsts = params.wx_first | params.h_first | params.states_first | params.gates_first;
        if self.in_words(firsts) {
            return Ok(self.forward_steps.clone());
        }
        steps(&self.device, &self.common, self.fused, &self.shapes, Pass::Forward, false)
    }

    /// Of the backward pass.
    pub fn backward_steps(&self, params: &Params) -> Result<Arc<Kernel>> {
        let firsts =
            params.states_first | params.gates_first | params.d_states_first | params.d_wx_first;
        if self.in_words(firsts) {
            return Ok(self.backward_kernels()?.steps.clone());
        }
        steps(&self.device, &self.common, self.fused, &self.shapes, Pass::Backward, false)
    }

    /// Whether the kernels for tensors that begin at an even element serve tensors that begin here:
    /// f32 is in words anywhere.
    fn in_words(&self, firsts: u32) -> bool {
        self.common.element == Dtype::F32 || firsts.is_multiple_of(2)
    }

    /// The kernel of the gradient of R, and how wide its tiles are.
    pub fn weight_gradient(&self, params: &Params) -> Result<(Arc<Kernel>, usize)> {
        if self.in_words(params.states_first | params.d_wx_first) {
            return Ok(self.backward_kernels()?.weight_gradient.clone());
        }
        weight_gradient(&self.device, &self.common, self.shapes.head_dim, false)
    }

    /// Keeps what was compiled for the next process.
    pub fn save_pipelines(&self) {
        if let Some(Some(cache)) = self.device.cache.get() {
            cache.save();
        }
    }

    /// Sizes and options as the kernels read them.
    pub fn params(&self) -> Params {
        let (shapes, problem) = (&self.shapes, &self.problem);
        Params {
            // `check_limits` has seen to it that these fit.
            batch: shapes.batch as u32,
            time: shapes.time as u32,
            heads: shapes.heads as u32,
            head_dim: shapes.head_dim as u32,
            time_major: (shapes.layout == Order::TimeMajor).into(),
            reverse: problem.options.reverse.into(),
            clips_forward: problem.options.forward_clip.is_some_and(f64::is_finite).into(),
            clips_gradient: problem.options.recurrent_grad_clip.is_some_and(f64::is_finite).into(),
            forward_clip: problem.options.forward_clip.unwrap_or_default() as f32,
            recurrent_grad_clip: problem.options.recurrent_grad_clip.unwrap_or_default() as f32,
            cut_recurrent_grad: problem.options.cut_recurrent_grad.into(),
            ..Params::default()
        }
    }

    /// The workgroups of a kernel with 16 units and 16 of `lines` each.
    pub fn tiles(&self, lines: usize) -> usize {
        self.shapes.head_dim.div_ceil(16) * self.shapes.heads * lines.div_ceil(16)
    }

    /// The workgroups of a kernel of the time steps.
    pub fn groups(&self) -> usize {
        match self.fused {
            None => select::step_groups(&self.shapes),
            Some(fused) => fused.groups(&self.shapes),
        }
    }

    /// Runs a kernel of the time steps for so many, from `params.first_step` on.
    pub fn run_steps(
        &self,
        commands: &mut Call<'_>,
        kernel: &Kernel,
        params: Params,
        bound: &[Bound<'_>],
        steps: usize,
    ) {
        let of_dispatch = if self.fused.is_some() { select::FUSED_STEPS } else { 1 };
        commands.run_steps(kernel, &params, bound, self.groups(), steps, of_dispatch);
    }

    /// Binds a tensor, or a placeholder where it is absent or empty.
    pub fn bind<'a, P>(
        &'a self,
        view: Option<View<'a, P>>,
        written: bool,
        slot: u64,
        first: &mut u32,
    ) -> Bound<'a> {
        match view.filter(|view| view.len > 0) {
            None => Bound::absent(&self.device, written, slot),
            Some(view) => {
                let (bound, at) = Bound::view(&self.device, view);
                *first = at;
                bound
            }
        }
    }

    /// Returns the memory that a call works in: the caller's, or some of the plan's own with room
    /// for these regions.
    pub fn scratch<'a>(
        &'a self,
        workspace: Option<ViewMut<'a, u8>>,
        regions: &[usize],
    ) -> Result<Scratch<'a>> {
        match &workspace {
            Some(workspace) => Scratch::given(workspace),
            None => self.pool.take(&self.device, scratch::workspace(regions).bytes),
        }
    }
}

/// A pass through time.
#[derive(Clone, Copy)]
enum Pass {
    Forward,
    Backward,
}

/// The kernel of a pass's time steps; `words`: tensors begin so that pairs of 16-bit units are
/// whole words.
fn steps(
    device: &Device,
    common: &Common,
    fused: Option<Fused>,
    shapes: &Shapes,
    pass: Pass,
    words: bool,
) -> Result<Arc<Kernel>> {
    let (program, name) = match (pass, fused) {
        (Pass::Forward, None) => (common.forward_step(shapes, words), "forward_step"),
        (Pass::Forward, Some(fused)) => {
            (common.fused_forward(fused, shapes, words), "fused_forward")
        }
        (Pass::Backward, None) => (common.backward_step(shapes, words), "backward_step"),
        (Pass::Backward, Some(fused)) => {
            (common.fused_backward(fused, shapes, words), "fused_backward")
        }
    };
    Kernel::get(device, &program, name)
}

/// The kernel of the gradient of R, and how wide its tiles are; `words`: pairs of 16-bit units are
/// whole words.
fn weight_gradient(
    device: &Device,
    common: &Common,
    head_dim: usize,
    words: bool,
) -> Result<(Arc<Kernel>, usize)> {
    let adapter = common.adapter;
    let (program, width) =
        match select::matrix_width(head_dim, common.element, adapter).filter(|_| words) {
            Some(width) => (common.matrix_gradient(width), width),
            None => {
                let gradient = Gradient::new(head_dim, adapter);
                (common.gradients(gradient, words), gradient.width())
            }
        };
    Ok((Kernel::get(device, &program, "weight_gradient")?, width))
}
