//! The backend and its plans: checks, and the way from the public interface to the engine.

use std::sync::{Arc, OnceLock};

use bytemuck::Pod;
use flashrnn_core::{
    Backend, Backward, Cell, Dtype, Element, Error, Forward, Info, Plan, Problem, Real, Result, Saved,
    Shapes, Step, Weights, WeightsLayout, Workspace,
};

use crate::compiled;
use crate::engine::{Kernel, Sink};
use crate::memory::{Aligned, Shared, filled};
use crate::product::PackedOrder;
use crate::simd::Level;

/// The CPU backend: threads over heads and batch rows, SIMD within.
#[derive(Clone, Debug)]
pub struct Cpu {
    level: Level,
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// The most threads a pool may have.
    pub const MOST_THREADS: usize = 1024;

    /// With the machine's best instruction set, on rayon's current thread pool.
    pub fn new() -> Self {
        let level = Level::available().pop().unwrap_or(Level::Portable);
        Self { level, pool: None }
    }

    /// With a thread pool of its own, of 1 to [`Cpu::MOST_THREADS`] threads.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] for another number, [`Error::Device`] where the threads can't be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        if !(1..=Self::MOST_THREADS).contains(&threads) {
            return Err(Error::InvalidProblem {
                option: "threads",
                got: threads.to_string(),
                want: "1 to 1024",
            });
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool =
            pool.map_err(|e| Error::device_because(format!("could not start {threads} threads"), e))?;
        Ok(Self { pool: Some(Arc::new(pool)), ..Self::new() })
    }

    /// With another instruction set of [`Level::available`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] where this machine does not have it.
    pub fn with_level(self, level: Level) -> Result<Self> {
        if !Level::available().contains(&level) {
            let what = format!("the instruction set {}", level.name());
            return Err(Error::Unsupported {
                backend: "cpu",
                what,
                why: "this machine does not have it".into(),
            });
        }
        Ok(Self { level, ..self })
    }

    /// How many threads a call uses.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
    }

    /// Runs `f` on this backend's threads.
    fn install<A: Send>(&self, f: impl FnOnce() -> A + Send) -> A {
        match &self.pool {
            Some(pool) => pool.install(f),
            None => f(),
        }
    }
}

impl Backend for Cpu {
    type Buffer<P: Pod + Send + Sync> = Vec<P>;
    type View<'a, P: Pod + Send + Sync> = &'a [P];
    type ViewMut<'a, P: Pod + Send + Sync> = &'a mut [P];
    type Packed<T: Element> = Packed<T::Wide>;
    type PackedOrder = PackedOrder;
    type Plan<T: Element, W: Element> = CpuPlan<T, W>;

    fn info(&self) -> Info {
        let device = format!("{} threads, {}", self.threads(), self.level.name());
        Info { name: "cpu", device, dtypes: vec![Dtype::F32, Dtype::F64, Dtype::Bf16, Dtype::F16] }
    }

    fn alloc<P: Pod + Send + Sync>(&self, len: usize) -> Result<Vec<P>> {
        filled(P::zeroed(), len)
    }

    fn upload<P: Pod + Send + Sync>(&self, data: &[P]) -> Result<Vec<P>> {
        let mut buffer = filled(P::zeroed(), data.len())?;
        buffer.copy_from_slice(data);
        Ok(buffer)
    }

    fn download<P: Pod + Send + Sync>(&self, view: &[P]) -> Result<Vec<P>> {
        self.upload(view)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn trim(&self) -> Result<()> {
        Ok(())
    }

    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Vec<P>) -> &'a [P] {
        buffer
    }

    fn view_mut<'a, P: Pod + Send + Sync>(&self, buffer: &'a mut Vec<P>) -> &'a mut [P] {
        buffer
    }

    fn plan<T: Element, W: Element, C: Cell>(&self, cell: &C, problem: &Problem) -> Result<CpuPlan<T, W>> {
        let shapes = problem.shapes::<C>()?;
        if W::DTYPE != T::DTYPE && W::DTYPE != <T::Wide as Element>::DTYPE {
            let what = format!("weights of {} with tensors of {}", W::DTYPE, T::DTYPE);
            let why = "weights have the tensors' type, or f32 beside 16-bit tensors".into();
            return Err(Error::Unsupported { backend: "cpu", what, why });
        }
        let kernel = self.install(|| compiled::kernel::<T, C>(cell, problem, &shapes, self.level))?;
        let Shapes { recurrent, gates, heads, head_dim, .. } = shapes;
        let layout = WeightsLayout { recurrent, gates, heads, head_dim, order: kernel.order() };
        Ok(CpuPlan {
            cpu: self.clone(),
            problem: problem.clone(),
            shapes,
            layout: Arc::new(layout),
            kernel,
            weights: std::marker::PhantomData,
        })
    }
}

/// A problem made ready to run on the CPU.
pub struct CpuPlan<T: Element, W: Element> {
    cpu: Cpu,
    problem: Problem,
    shapes: Shapes,
    layout: Arc<WeightsLayout<PackedOrder>>,
    kernel: Arc<dyn Kernel<T>>,
    weights: std::marker::PhantomData<fn(W)>,
}

impl<T: Element, W: Element> CpuPlan<T, W> {
    /// The backend that made this plan.
    pub fn backend(&self) -> &Cpu {
        &self.cpu
    }
}

/// R and b, widened to `S` and packed; R once more in transposed order from the first backward pass on.
pub struct Packed<S> {
    pub(crate) forward: Aligned<S>,
    pub(crate) backward: OnceLock<Aligned<S>>,
    /// `[G, N, D]`
    pub(crate) b: Aligned<S>,
}

impl<S> Packed<S> {
    /// R in the order of the backward pass.
    pub(crate) fn transposed(&self, pack: impl FnOnce() -> Result<Aligned<S>>) -> Result<&Aligned<S>> {
        if let Some(packed) = self.backward.get() {
            return Ok(packed);
        }
        let packed = pack()?;
        Ok(self.backward.get_or_init(|| packed))
    }
}

/// The elements in their wide type, without a copy where they have it already.
fn widened<W: Element, S: Element>(x: &[W]) -> Result<std::borrow::Cow<'_, [S]>> {
    if W::DTYPE == S::DTYPE {
        return Ok(bytemuck::cast_slice(x).into());
    }
    let mut wide = filled(S::default(), x.len())?;
    for (wide, x) in wide.iter_mut().zip(x) {
        *wide = S::from_f64(x.to_f64());
    }
    Ok(wide.into())
}

impl<T: Element, W: Element> Plan<T, W> for CpuPlan<T, W> {
    type Backend = Cpu;

    fn problem(&self) -> &Problem {
        &self.problem
    }

    fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    fn weights_layout(&self) -> &Arc<WeightsLayout<PackedOrder>> {
        &self.layout
    }

    fn pack(&self, r: &[W], b: &[W]) -> Result<Weights<Cpu, T>> {
        Shapes::check("r", r.len(), &self.shapes.r())?;
        Shapes::check("b", b.len(), &self.shapes.b())?;
        let (r, b) = (widened(r)?, widened(b)?);
        let packed = self.cpu.install(|| self.kernel.pack(&r, &b))?;
        Ok(Weights::new(self.layout.clone(), packed))
    }

    fn saved(&self) -> Result<Saved<Cpu, T>> {
        Saved::new(&self.cpu, &self.shapes, self.problem.options.save)
    }

    fn forward_workspace(&self) -> Workspace {
        Workspace::NONE
    }

    fn backward_workspace(&self) -> Workspace {
        Workspace::NONE
    }

    fn forward(&self, call: Forward<'_, Cpu, T>) -> Result<()> {
        call.check(self)?;
        self.cpu.install(|| self.kernel.forward(call))
    }

    fn backward(&self, call: Backward<'_, Cpu, T, W>) -> Result<()> {
        call.check(self)?;
        let Backward { weights, states, saved, wx, s0, lengths, resets, d_h, d_states, d_last, .. } = call;
        let Backward { d_wx, d_r, d_b, d_s0, accumulate, workspace, .. } = call;
        let Shapes { heads, head_dim, .. } = self.shapes;
        let wanted = d_r.is_some() || d_b.is_some();
        let (d_r, d_b) = (d_r.map(Shared::new), d_b.map(Shared::new));
        let sink: Sink<'_, T::Wide> = &|part| {
            let first = (part.gate * heads + part.head) * head_dim + part.unit;
            if let Some(d_r) = d_r.filter(|_| !part.d_r.is_empty()) {
                // SAFETY: each part of the gradient comes once.
                put(unsafe { d_r.slice(first * head_dim, part.d_r.len()) }, part.d_r, accumulate);
            }
            if let Some(d_b) = d_b {
                // SAFETY: as above.
                put(unsafe { d_b.slice(first, part.d_b.len()) }, part.d_b, accumulate);
            }
        };
        let call = Backward {
            weights,
            states,
            saved,
            wx,
            s0,
            lengths,
            resets,
            d_h,
            d_states,
            d_last,
            d_wx,
            d_r: None,
            d_b: None,
            d_s0,
            accumulate,
            workspace,
        };
        self.cpu.install(|| self.kernel.backward(call, wanted.then_some(sink)))
    }

    fn step(&self, call: Step<'_, Cpu, T>) -> Result<()> {
        call.check(self)?;
        self.kernel.step(call)
    }
}

/// Writes sums, or adds them to what is there, in their wide type; `W` is that or a narrower one.
fn put<W: Element, S: Element + Real>(out: &mut [W], sums: &[S], accumulate: bool) {
    for (out, &sum) in out.iter_mut().zip(sums) {
        let before = if accumulate { S::from_f64(out.to_f64()) } else { S::default() };
        *out = W::from_f64((before + sum).to_f64());
    }
}
