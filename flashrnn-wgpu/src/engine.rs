//! The kernels and sizes of a plan, independent of the element types. `passes` implements the
//! passes.

use std::sync::{Arc, OnceLock};

use flashrnn_core::{
    Dtype, Element, Layout as Order, Problem, Result, Save, Shapes, WeightsLayout,
};
use flashrnn_gpu::Family;

use crate::backend::Wgpu;
use crate::call::Params;
use crate::device::Device;
use crate::kernels::recorder::Recorder;
use crate::kernels::{Kernel, Kernels};
use crate::layout::workspace;
use crate::memory::binding::Binding;
use crate::memory::scratch::{Pool, Scratch};
use crate::memory::{View, ViewMut};
use crate::packed::{PackedOrder, layout};
use crate::programs::Programs;
use crate::programs::tensors::TensorSet;
use crate::select::choice::why_not_fused;
use crate::select::limits::{check_limits, check_loops, check_scratch, unsupported};
use crate::select::{self, Adapter, Fused, GradTile};

/// The kernels and sizes of a plan.
pub(crate) struct Engine {
    pub wgpu: Wgpu,
    pub problem: Problem,
    pub shapes: Shapes,
    /// The adapter that kernels were chosen for.
    pub adapter: Adapter,
    /// `None` if per-step kernels run the time steps.
    pub fused: Option<Fused>,
    /// The kernel of the forward pass's time steps for word-aligned tensors.
    forward_kernel: Arc<Kernel>,
    /// The maximum number of steps that the backward pass runs at a time: all of them, or those
    /// whose gates are recomputed together.
    pub steps_at_once: usize,
    /// The layout of the packed weights that the kernels read.
    pub layout: Arc<WeightsLayout<PackedOrder>>,
    pub pack: Arc<Kernel>,
    pub pack_fused: Option<Arc<Kernel>>,
    pub programs: Programs,
    /// Compiled by the first backward pass, because inference does not need them.
    backward: OnceLock<BackwardKernels>,
    /// The scratch memory of calls without a workspace.
    pub pool: Arc<Pool>,
}

/// The kernels of the backward pass.
pub(crate) struct BackwardKernels {
    /// The kernel of the time steps for word-aligned tensors.
    steps: Arc<Kernel>,
    /// Present if the plan recomputes the gates ([`Save::Recompute`]).
    pub recompute: Option<Arc<Kernel>>,
    /// The kernel for word-aligned tensors, and the side of its tiles.
    weight_grad: (Arc<Kernel>, usize),
    pub bias_grad: Arc<Kernel>,
    pub reduce: Arc<Kernel>,
}

impl Engine {
    /// Compiles the kernels of the forward pass for a cell whose sizes and functions are printed as
    /// WGSL.
    pub fn new<T: Element, W: Element>(
        wgpu: &Wgpu,
        cell: [String; 2],
        problem: &Problem,
        shapes: &Shapes,
    ) -> Result<Self> {
        let Wgpu { device, kernels, preferences, .. } = wgpu;
        let adapter = preferences.adapter(device.adapter());
        let fused = preferences.fused(shapes, adapter, T::DTYPE);
        check_limits(device.max_tensor_bytes(), shapes, problem, T::DTYPE, fused)?;
        check_loops(shapes, || wgpu.probes.long_loops(kernels))?;
        let programs = programs(wgpu, cell, [T::DTYPE, W::DTYPE], problem, shapes, adapter, fused)?;
        if fused.is_none() && preferences.family == Family::Fused {
            return Err(unsupported(
                "fused kernels for this problem".into(),
                why_not_fused(adapter).into(),
            ));
        }
        let word_aligned = adapter.word_aligned(shapes.head_dim);
        let steps_at_once = match problem.options.save {
            Save::Gates => shapes.time,
            Save::Recompute => {
                let step_len = shapes.gates * shapes.batch * shapes.units();
                select::recomputed_steps(shapes.time, step_len)
            }
        };
        let engine = Self {
            wgpu: wgpu.clone(),
            problem: problem.clone(),
            shapes: shapes.clone(),
            adapter,
            fused,
            forward_kernel: step_kernel(
                kernels,
                &programs,
                fused,
                shapes,
                Pass::Forward,
                word_aligned,
            )?,
            steps_at_once,
            layout: layout(device, shapes, fused),
            pack: kernels.get(&programs.pack(), "pack")?,
            pack_fused: fused
                .map(|fused| kernels.get(&programs.pack_fused(fused, shapes), "pack_fused"))
                .transpose()?,
            programs,
            backward: OnceLock::new(),
            pool: wgpu.pools.pool(),
        };
        check_scratch(device.limits.max_buffer_size, &engine.backward_regions())?;
        kernels.save_pipelines();
        Ok(engine)
    }

    /// Returns the device that the plan runs on.
    pub fn device(&self) -> &Device {
        &self.wgpu.device
    }

    /// Returns the kernels of the backward pass. The first call compiles them.
    pub fn backward_kernels(&self) -> Result<&BackwardKernels> {
        if let Some(compiled) = self.backward.get() {
            return Ok(compiled);
        }
        let (kernels, programs) = (&self.wgpu.kernels, &self.programs);
        let word_aligned = programs.adapter.word_aligned(self.shapes.head_dim);
        let tile = GradTile::new(self.shapes.head_dim, programs.adapter);
        let grads = programs.weight_grad(tile, word_aligned);
        let compiled = BackwardKernels {
            steps: self.step_kernel(Pass::Backward, word_aligned)?,
            recompute: programs
                .recompute
                .then(|| kernels.get(&programs.recompute(), "recompute"))
                .transpose()?,
            weight_grad: self.compile_weight_grad(word_aligned)?,
            bias_grad: kernels.get(&grads, "bias_grad")?,
            reduce: kernels.get(&programs.reduce(), "reduce")?,
        };
        kernels.save_pipelines();
        Ok(self.backward.get_or_init(|| compiled))
    }

    /// Returns the kernel of the forward pass's time steps, for tensors at the offsets in `params`.
    pub fn forward_kernel(&self, params: &Params) -> Result<Arc<Kernel>> {
        let firsts = params.wx_first | params.h_first | params.states_first | params.gates_first;
        match self.is_word_aligned(firsts) {
            true => Ok(self.forward_kernel.clone()),
            false => self.step_kernel(Pass::Forward, false),
        }
    }

    /// Returns the kernel of the backward pass's time steps, for tensors at the offsets in
    /// `params`.
    pub fn backward_kernel(&self, params: &Params) -> Result<Arc<Kernel>> {
        let firsts =
            params.states_first | params.gates_first | params.d_states_first | params.d_wx_first;
        match self.is_word_aligned(firsts) {
            true => Ok(self.backward_kernels()?.steps.clone()),
            false => self.step_kernel(Pass::Backward, false),
        }
    }

    /// Returns the kernel of the gradient of R, for tensors at the offsets in `params`, and the
    /// side of its tiles.
    pub fn weight_grad_kernel(&self, params: &Params) -> Result<(Arc<Kernel>, usize)> {
        match self.is_word_aligned(params.states_first | params.d_wx_first) {
            true => Ok(self.backward_kernels()?.weight_grad.clone()),
            false => self.compile_weight_grad(false),
        }
    }

    /// Returns whether tensors begin at whole words. `firsts` is the bitwise or of their offsets.
    fn is_word_aligned(&self, firsts: u32) -> bool {
        self.programs.element == Dtype::F32 || firsts.is_multiple_of(2)
    }

    fn step_kernel(&self, pass: Pass, word_aligned: bool) -> Result<Arc<Kernel>> {
        let Self { wgpu, programs, fused, shapes, .. } = self;
        step_kernel(&wgpu.kernels, programs, *fused, shapes, pass, word_aligned)
    }

    fn compile_weight_grad(&self, word_aligned: bool) -> Result<(Arc<Kernel>, usize)> {
        let Self { programs, shapes: Shapes { head_dim, .. }, .. } = self;
        let matrix_width = select::matrix_width(*head_dim, programs.element, programs.adapter);
        let (program, width) = match matrix_width.filter(|_| word_aligned) {
            Some(width) => (programs.weight_grad_matrices(width), width),
            None => {
                let tile = GradTile::new(*head_dim, programs.adapter);
                (programs.weight_grad(tile, word_aligned), tile.width())
            }
        };
        Ok((self.wgpu.kernels.get(&program, "weight_grad")?, width))
    }

    /// Returns the sizes and options as the kernels read them.
    pub fn params(&self) -> Params {
        let (shapes, options) = (&self.shapes, &self.problem.options);
        Params {
            // `check_limits` has checked that these fit.
            batch: shapes.batch as u32,
            time: shapes.time as u32,
            heads: shapes.heads as u32,
            head_dim: shapes.head_dim as u32,
            time_major: (shapes.layout == Order::TimeMajor).into(),
            reverse: options.reverse.into(),
            clips_forward: options.forward_clip.is_some_and(f64::is_finite).into(),
            clips_gradient: options.recurrent_grad_clip.is_some_and(f64::is_finite).into(),
            forward_clip: options.forward_clip.unwrap_or_default() as f32,
            recurrent_grad_clip: options.recurrent_grad_clip.unwrap_or_default() as f32,
            cut_recurrent_grad: options.cut_recurrent_grad.into(),
            ..Params::default()
        }
    }

    /// Records a kernel for `steps` time steps, beginning with `params.first_step`.
    pub fn run_steps<'b>(
        &self,
        recorder: &mut Recorder<'_>,
        kernel: &Kernel,
        params: Params,
        tensors: impl TensorSet<Binding<'b>> + Copy,
        steps: usize,
    ) {
        let (groups, steps_per_dispatch) = match self.fused {
            None => (select::step_groups(&self.shapes), 1),
            Some(fused) => (fused.groups(&self.shapes), select::FUSED_STEPS),
        };
        recorder.run_steps(kernel, &params, tensors, groups, steps, steps_per_dispatch);
    }

    /// Binds a tensor and stores its offset in `first`; binds a placeholder if it is absent or
    /// empty.
    pub fn bind<'a, P>(
        &'a self,
        view: Option<View<'a, P>>,
        written: bool,
        slot: u64,
        first: &mut u32,
    ) -> Binding<'a> {
        match view.filter(|view| view.len > 0) {
            None => Binding::absent(self.device(), written, slot),
            Some(view) => {
                let (binding, at) = Binding::view(self.device(), view);
                *first = at;
                binding
            }
        }
    }

    /// Returns scratch memory for a call with the region sizes `regions`, from the caller's
    /// workspace or the plan's pool.
    pub fn scratch<'a>(
        &'a self,
        workspace_of_caller: Option<ViewMut<'a, u8>>,
        regions: &[usize],
    ) -> Result<Scratch<'a>> {
        match &workspace_of_caller {
            Some(view) => Scratch::of_caller(view),
            None => self.pool.take(self.device(), workspace(regions).bytes),
        }
    }
}

/// Prepares the programs of a plan whose tensors are `element` and whose weights are `weight`.
fn programs(
    wgpu: &Wgpu,
    [sizes, functions]: [String; 2],
    [element, weight]: [Dtype; 2],
    problem: &Problem,
    shapes: &Shapes,
    adapter: Adapter,
    fused: Option<Fused>,
) -> Result<Programs> {
    let Wgpu { kernels, probes, .. } = wgpu;
    let workgroup_bytes = adapter.workgroup_bytes;
    let chunk = select::chunk(shapes.recurrent, workgroup_bytes).ok_or_else(|| {
        unsupported(
            format!("{} recurrent gates", shapes.recurrent),
            format!("the workgroup memory has {workgroup_bytes} bytes"),
        )
    })?;
    let native_f16_exact = element == Dtype::F16 && probes.native_f16_exact(kernels)?;
    let subgroups = fused.is_none() && adapter.subgroups() && probes.full_subgroups(kernels)?;
    let subgroup = if subgroups { adapter.subgroup } else { 1 };
    let recompute = problem.options.save == Save::Recompute;
    Ok(Programs {
        sizes,
        functions,
        element,
        weight,
        native_f16_exact,
        adapter: Adapter { subgroup, ..adapter },
        chunk,
        recompute,
    })
}

/// A pass through time.
#[derive(Clone, Copy)]
enum Pass {
    Forward,
    Backward,
}

/// Returns the kernel of a pass's time steps.
fn step_kernel(
    kernels: &Kernels,
    programs: &Programs,
    fused: Option<Fused>,
    shapes: &Shapes,
    pass: Pass,
    word_aligned: bool,
) -> Result<Arc<Kernel>> {
    let (program, name) = match (pass, fused) {
        (Pass::Forward, None) => (programs.forward_step(shapes, word_aligned), "forward_step"),
        (Pass::Forward, Some(fused)) => {
            (programs.fused_forward(fused, shapes, word_aligned), "fused_forward")
        }
        (Pass::Backward, None) => (programs.backward_step(shapes, word_aligned), "backward_step"),
        (Pass::Backward, Some(fused)) => {
            (programs.fused_backward(fused, shapes, word_aligned), "fused_backward")
        }
    };
    kernels.get(&program, name)
}
