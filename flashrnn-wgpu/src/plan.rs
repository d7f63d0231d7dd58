//! The backend and its plans: checks, and the way from the public interface to the kernels.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, OnceLock};

use bytemuck::Pod;
use flashrnn_core::trace::print::wgsl;
use flashrnn_core::{
    Backend, Backward, Cell, Dtype, Element, Error, Forward, Info, Layout as Order, Len, Plan, Problem,
    Result, Save, Saved, Shapes, Step,
};

use crate::call::Params;
use crate::device::{Device, Wgpu};
use crate::forward::StepMemory;
use crate::kernel::{Bound, Call, Kernel};
use crate::memory::{Buffer, Pool, View, ViewMut};
use crate::programs::Common;
use crate::select::{self, Adapter, Family, Fused, Gradient};

impl Backend for Wgpu {
    type Buffer<P: Pod + Send + Sync> = Buffer<P>;
    type View<'a, P: Pod + Send + Sync> = View<'a, P>;
    type ViewMut<'a, P: Pod + Send + Sync> = ViewMut<'a, P>;
    type Plan<T: Element, W: Element> = WgpuPlan<T, W>;

    const CHECKS_LENGTHS: bool = false;

    fn info(&self) -> Info {
        let dtypes = vec![Dtype::F32, Dtype::Bf16, Dtype::F16];
        Info { name: "wgpu", device: self.device.name.clone(), dtypes }
    }

    fn alloc<P: Pod + Send + Sync>(&self, len: usize) -> Result<Buffer<P>> {
        self.device.alloc(len)
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

    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Buffer<P>) -> View<'a, P> {
        buffer.view()
    }

    fn view_mut<'a, P: Pod + Send + Sync>(&self, buffer: &'a mut Buffer<P>) -> ViewMut<'a, P> {
        buffer.view_mut()
    }

    fn plan<T: Element, W: Element, C: Cell>(&self, cell: &C, problem: &Problem) -> Result<WgpuPlan<T, W>> {
        let shapes = problem.shapes::<C>()?;
        if !self.info().dtypes.contains(&T::DTYPE) {
            return Err(unsupported(format!("tensors of {}", T::DTYPE), "they are f32, bf16 or f16".into()));
        }
        if W::DTYPE != T::DTYPE && W::DTYPE != Dtype::F32 {
            let what = format!("weights of {} with tensors of {}", W::DTYPE, T::DTYPE);
            return Err(unsupported(
                what,
                "weights have the tensors' type, or f32 beside 16-bit tensors".into(),
            ));
        }
        let engine =
            Engine::new::<T, W>(self, [wgsl::sizes::<C>(), wgsl::functions(cell)], problem, &shapes)?;
        engine.save_pipelines();
        Ok(WgpuPlan { wgpu: self.clone(), engine, weights: PhantomData })
    }
}

fn unsupported(what: String, why: String) -> Error {
    Error::Unsupported { backend: "wgpu", what, why }
}

/// What a plan runs with: the kernels and sizes, whatever the element types.
pub(crate) struct Engine {
    pub device: Arc<Device>,
    pub problem: Problem,
    pub shapes: Shapes,
    /// `None`: the two kernels of the time steps are the alternating ones.
    pub fused: Option<Fused>,
    /// For tensors that begin at an even element.
    forward_steps: Arc<Kernel>,
    /// The most steps of the backward pass at a time: all, or those whose gates are computed again together.
    pub gates_steps: usize,
    pack: Arc<Kernel>,
    pack_fused: Option<Arc<Kernel>>,
    common: Common,
    /// Compiled by the first backward pass: inference needs none of it.
    backward: OnceLock<BackwardKernels>,
    /// What the passes work in.
    pub pool: Pool,
    /// Made by the first step.
    pub step_memory: Mutex<Option<StepMemory>>,
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
    fn new<T: Element, W: Element>(
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
        let recompute = problem.save == Save::Recompute;
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
            let why = "R is too large for a workgroup, or a step for its memory";
            return Err(unsupported("fused kernels for this problem".into(), why.into()));
        }
        let words = adapter.words(shapes.head_dim);
        Ok(Self {
            device: device.clone(),
            problem: problem.clone(),
            shapes: shapes.clone(),
            fused,
            forward_steps: steps(device, &common, fused, shapes, Pass::Forward, words)?,
            gates_steps: match problem.save {
                Save::Gates => shapes.time,
                Save::Recompute => {
                    select::gates_steps(shapes.time, shapes.gates * shapes.batch * shapes.units())
                }
            },
            pack: Kernel::get(device, &common.pack(), "pack")?,
            pack_fused: fused
                .map(|fused| Kernel::get(device, &common.pack_fused(fused, shapes), "pack_fused"))
                .transpose()?,
            common,
            backward: OnceLock::new(),
            pool: Pool::default(),
            step_memory: Mutex::default(),
        })
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
        if firsts.is_multiple_of(2) {
            return Ok(self.forward_steps.clone());
        }
        steps(&self.device, &self.common, self.fused, &self.shapes, Pass::Forward, false)
    }

    /// Of the backward pass.
    pub fn backward_steps(&self, params: &Params) -> Result<Arc<Kernel>> {
        let firsts = params.states_first | params.gates_first | params.d_states_first | params.d_wx_first;
        if firsts.is_multiple_of(2) {
            return Ok(self.backward_kernels()?.steps.clone());
        }
        steps(&self.device, &self.common, self.fused, &self.shapes, Pass::Backward, false)
    }

    /// The kernel of the gradient of R, and how wide its tiles are.
    pub fn weight_gradient(&self, params: &Params) -> Result<(Arc<Kernel>, usize)> {
        if (params.states_first | params.d_wx_first).is_multiple_of(2) {
            return Ok(self.backward_kernels()?.weight_gradient.clone());
        }
        weight_gradient(&self.device, &self.common, self.shapes.head_dim, false)
    }

    /// Keeps what was compiled for the next process.
    fn save_pipelines(&self) {
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
            reverse: problem.reverse.into(),
            clips_forward: problem.forward_clip.is_some_and(f64::is_finite).into(),
            clips_gradient: problem.recurrent_grad_clip.is_some_and(f64::is_finite).into(),
            forward_clip: problem.forward_clip.unwrap_or_default() as f32,
            recurrent_grad_clip: problem.recurrent_grad_clip.unwrap_or_default() as f32,
            cut_recurrent_grad: problem.cut_recurrent_grad.into(),
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
            None => self.shapes.head_dim.div_ceil(8) * self.shapes.heads * self.shapes.batch.div_ceil(16),
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

    /// A tensor bound, or what stands for it where it is absent.
    pub fn bind<'a, P>(
        &'a self,
        view: Option<View<'a, P>>,
        written: bool,
        slot: u64,
        first: &mut u32,
    ) -> Bound<'a> {
        match view {
            None => Bound::absent(&self.device, written, slot),
            Some(view) => {
                let (bound, at) = Bound::view(&self.device, view);
                *first = at;
                bound
            }
        }
    }

    fn pack<W: Element>(&self, r: View<'_, W>, b: View<'_, W>) -> Result<WgpuWeights> {
        let [plain, fused] = select::packed(&self.shapes, self.fused, self.common.narrow());
        let packed = self.device.alloc::<u32>(4 * (plain + fused))?;
        self.device.scope(0, || {
            let mut params = self.params();
            let bound = [
                self.bind(Some(r), false, 0, &mut params.r_first),
                self.bind(Some(b), false, 1, &mut params.b_first),
                Bound::whole(&packed.buffer),
            ];
            let mut call = Call::new(&self.device);
            call.run(&self.pack, &params, &bound, plain.div_ceil(64));
            if let Some(pack_fused) = &self.pack_fused {
                call.run(pack_fused, &params, &bound, fused.div_ceil(64));
            }
            call.submit();
            Ok(())
        })?;
        Ok(WgpuWeights { packed })
    }
}

/// A pass through time.
#[derive(Clone, Copy)]
enum Pass {
    Forward,
    Backward,
}

/// The kernel of a pass's time steps; `words`: tensors begin so that pairs of 16-bit units are whole words.
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
        (Pass::Forward, Some(fused)) => (common.fused_forward(fused, shapes, words), "fused_forward"),
        (Pass::Backward, None) => (common.backward_step(shapes, words), "backward_step"),
        (Pass::Backward, Some(fused)) => (common.fused_backward(fused, shapes, words), "fused_backward"),
    };
    Kernel::get(device, &program, name)
}

/// The kernel of the gradient of R, and how wide its tiles are; `words`: pairs of 16-bit units are whole words.
fn weight_gradient(
    device: &Device,
    common: &Common,
    head_dim: usize,
    words: bool,
) -> Result<(Arc<Kernel>, usize)> {
    let adapter = common.adapter;
    let (program, width) = match select::matrix_width(head_dim, common.element, adapter).filter(|_| words) {
        Some(width) => (common.matrix_gradient(width), width),
        None => {
            let gradient = Gradient::new(head_dim, adapter);
            (common.gradients(gradient, words), gradient.width())
        }
    };
    Ok((Kernel::get(device, &program, "weight_gradient")?, width))
}

/// Refuses what the device's bindings can't hold.
fn check_limits(
    most: u64,
    shapes: &Shapes,
    problem: &Problem,
    element: Dtype,
    fused: Option<Fused>,
) -> Result<()> {
    if shapes.recurrent == 0 {
        return Err(unsupported(
            "a cell without recurrent gates".into(),
            "nothing of it is a recurrence".into(),
        ));
    }
    for (what, bytes) in bound_sizes(shapes, problem.save, element, fused) {
        if bytes > most.into() {
            let what = format!("{what} of {bytes} bytes");
            return Err(unsupported(what, format!("the device binds at most {most} bytes")));
        }
    }
    Ok(())
}

/// Refuses products whose loops the driver does not run to their end, which is asked only where they are long.
fn check_loops(shapes: &Shapes, long_loops: impl FnOnce() -> Result<bool>) -> Result<()> {
    if select::longest_loop(shapes) <= select::LONGEST_LOOP || long_loops()? {
        return Ok(());
    }
    let what = format!("head_dim {} with {} recurrent gates", shapes.head_dim, shapes.recurrent);
    Err(unsupported(what, "this driver ends long loops before they are done".into()))
}

/// The largest of what is bound, in bytes; wx, h and their gradients are no larger. `element` is T.
fn bound_sizes(
    shapes: &Shapes,
    save: Save,
    element: Dtype,
    fused: Option<Fused>,
) -> [(&'static str, u128); 8] {
    let narrow = element != Dtype::F32;
    let bytes = if narrow { 2 } else { 4 };
    let (units, batch, time) = (shapes.units() as u128, shapes.batch as u128, shapes.time as u128);
    let (states, gates) = (shapes.states as u128, shapes.gates as u128);
    let step = batch * time * units;
    let state = states * batch * units;
    let rows = batch + (batch * time).div_ceil(4);
    let gates_bytes = match save {
        Save::Gates => gates * step * bytes,
        Save::Recompute => {
            let step = gates * batch * units;
            select::gates_steps(shapes.time, step as usize) as u128 * step * 4
        }
    };
    let wide_gates = if save == Save::Gates { shapes.wide_gates.len() } else { 0 };
    let wide = if narrow { shapes.wide.len() + wide_gates } else { 0 };
    let partial =
        |columns: usize, round| (select::parts(shapes.tokens(), columns, round).0 as u128) * columns as u128;
    let [weight_round, bias_round] = select::GRADIENT_ROUNDS;
    [
        ("states", states * step * bytes),
        ("gates", gates_bytes),
        ("wide states and gates", wide as u128 * step * 4),
        ("weights", 16 * select::packed(shapes, fused, narrow).iter().sum::<usize>() as u128),
        ("parts of d_r", partial(shapes.r().iter().product(), weight_round) * 4),
        ("parts of d_b", partial(shapes.b().iter().product(), bias_round) * 4),
        ("the forward pass's working memory", (rows + 2 * state) * 4),
        (
            "the backward pass's working memory",
            (rows
                + 4 * state
                + (2 * shapes.recurrent) as u128 * batch * units
                + shapes.inner() as u128 * step)
                * 4,
        ),
    ]
}

/// A problem made ready to run on a device of wgpu's.
///
/// It keeps the memory that its calls work in, from the first call on. For backward passes that is up to 64 MiB of partial sums (or
/// one part of them, if that is more), the gradients of the gates that take no external input, in f32, and with
/// [`Save::Recompute`] up to 64 MiB of gates.
pub struct WgpuPlan<T: Element, W: Element> {
    wgpu: Wgpu,
    engine: Engine,
    weights: PhantomData<fn() -> (T, W)>,
}

/// R rounded to `T`, R transposed and b, in the form of shaders/weights.wgsl.
pub struct WgpuWeights {
    pub(crate) packed: Buffer<u32>,
}

impl<T: Element, W: Element> Plan<T, W> for WgpuPlan<T, W> {
    type Backend = Wgpu;
    type Weights = WgpuWeights;

    fn problem(&self) -> &Problem {
        &self.engine.problem
    }

    fn shapes(&self) -> &Shapes {
        &self.engine.shapes
    }

    fn pack(&self, r: View<'_, W>, b: View<'_, W>) -> Result<WgpuWeights> {
        Shapes::check("r", r.len(), &self.engine.shapes.r())?;
        Shapes::check("b", b.len(), &self.engine.shapes.b())?;
        self.engine.pack(r, b)
    }

    fn saved(&self) -> Result<Saved<Wgpu, T>> {
        Saved::new(&self.wgpu, &self.engine.shapes, self.engine.problem.save)
    }

    fn forward(&self, call: Forward<'_, Wgpu, T, W>) -> Result<()> {
        call.check(&self.wgpu, &self.engine.shapes, self.engine.problem.save)?;
        self.engine.device.scope(0, || self.engine.forward(call))
    }

    fn backward(&self, call: Backward<'_, Wgpu, T, W>) -> Result<()> {
        call.check(&self.wgpu, &self.engine.shapes, self.engine.problem.save)?;
        self.engine.device.scope(0, || self.engine.backward(call))
    }

    fn step(&self, call: Step<'_, Wgpu, T, W>) -> Result<()> {
        call.check(&self.engine.shapes)?;
        self.engine.device.scope(0, || self.engine.step(call))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use flashrnn_core::{Lstm, Slstm, f16};
    use flashrnn_testsuite::run::{How, Pass};
    use flashrnn_testsuite::{Case, Results, Tensors};

    use super::*;
    use crate::testing;

    /// The gates are the largest tensor here: 2^25 elements, or 2^24 in f32 where they are computed again.
    #[test]
    fn a_tensor_as_large_as_the_limit_fits() {
        let gates = Problem::new(32, 1024, 1, 256);
        let recompute = Problem { save: Save::Recompute, ..gates.clone() };
        for (problem, element, bytes) in [
            (&gates, Dtype::F32, 4),
            (&gates, Dtype::F16, 2),
            (&gates, Dtype::Bf16, 2),
            (&recompute, Dtype::F16, 2),
        ] {
            let shapes = problem.shapes::<Lstm>().unwrap();
            let check = |most| check_limits(most, &shapes, problem, element, None);
            assert_eq!(check(bytes << 25), Ok(()));
            assert!(
                matches!(check((bytes << 25) - 1), Err(Error::Unsupported { what, .. }) if what.starts_with("gates of"))
            );
        }
    }
    #[test]
    fn long_loops_need_a_driver_that_runs_them() {
        let shapes = |head_dim| Problem::new(1, 1, 1, head_dim).shapes::<Lstm>().unwrap();
        assert_eq!(check_loops(&shapes(32768), || panic!("asked for no reason")), Ok(()));
        assert_eq!(check_loops(&shapes(32772), || Ok(true)), Ok(()));
        assert!(matches!(check_loops(&shapes(32772), || Ok(false)), Err(Error::Unsupported { .. })));
    }

    /// The gates of a few steps at a time are the gates of all.
    #[test]
    fn gates_again_in_parts() {
        let Some(wgpu) = testing::wgpu() else { return };
        for (layout, reverse) in
            [(Order::BatchMajor, false), (Order::BatchMajor, true), (Order::TimeMajor, true)]
        {
            let problem = Problem { save: Save::Recompute, layout, reverse, ..Problem::new(3, 7, 2, 5) };
            let case = Case::random::<_, f16, f16>(&Slstm, &problem, Tensors::ALL, 5).unwrap();
            let mut plan = wgpu.plan::<f16, f16, _>(&Slstm, &problem).unwrap();
            let pass = Pass::<Wgpu, f16, f16>::forward(&wgpu, &plan, &case).unwrap();
            let mut backward = |steps| -> Results {
                plan.engine.gates_steps = steps;
                pass.backward(&wgpu, &plan, &case, How::default()).unwrap()
            };
            let whole = backward(7);
            for steps in [1, 3, 4] {
                assert_eq!(backward(steps), whole, "{steps} steps, {layout:?}, reverse: {reverse}");
            }
        }
    }

    /// A step works in memory of its plan's, so that streaming makes no buffers.
    #[test]
    fn steps_allocate_nothing() {
        let Some(wgpu) = testing::wgpu() else { return };
        let plan = wgpu.plan::<f16, f16, _>(&Slstm, &Problem::new(2, 1, 1, 8)).unwrap();
        let ones = |shape: &[usize]| wgpu.upload(&vec![f16::ONE; shape.iter().product()]).unwrap();
        let (r, b, wx) = (ones(&plan.shapes().r()), ones(&plan.shapes().b()), ones(&plan.shapes().wx()));
        let weights = plan.pack(r.view(), b.view()).unwrap();
        let mut state = wgpu.alloc::<f32>(plan.shapes().state().iter().product()).unwrap();
        let mut step = || {
            let call = Step { wx: wx.view(), weights: &weights, state: state.view_mut(), h: None };
            plan.step(call).unwrap();
            wgpu.device.buffers_made.load(Ordering::Relaxed)
        };
        let first = step();
        assert!(first > 0);
        assert_eq!([(); 5].map(|()| step()), [first; 5]);
    }
}
