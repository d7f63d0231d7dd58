//! The backend and its plans: checks, and the way from the public interface to the engine.

use std::sync::Arc;

use bytemuck::Pod;
use flashrnn_core::{
    Backend, Backward, Cell, Dtype, Element, Error, Forward, Info, Plan, Problem, Real, Result,
    Saved, Shapes, Step, Weights, WeightsLayout, Workspace,
};

use crate::cell_kernel;
use crate::engine::{Kernel, Sink};
use crate::kernel::packed::Packed;
use crate::kernel::product::PackedOrder;
use crate::memory::{Memory, Shared, Workspaces, filled};
use crate::simd::Level;
use crate::threads::pool::{Pool, default_threads};
use crate::threads::subnormals::Subnormals;
use crate::threads::workers::Workers;

/// The CPU backend: threads over heads and batch rows, SIMD within.
///
/// # Threads
/// The thread that makes a call works on it, and helper threads join where there is work for more
/// than one. Nobody runs another job while it waits, so calls may be made under a lock, from
/// rayon's threads and from several threads at once; the more callers, the fewer helpers each has.
/// Results do not depend on the number of threads.
///
/// After a `fork`, a child process has no helpers. Its calls of plans that it was born with run on
/// their own thread; a plan that it makes with [`Cpu::new`], and a backend that it makes by
/// [`Cpu::with_threads`], have new ones. As with any library that locks, no other thread may be
/// making a plan or a call while the process forks.
#[derive(Clone, Debug)]
pub struct Cpu {
    level: Level,
    subnormals: Subnormals,
    /// Its own threads; None for those that all backends share.
    pool: Option<Arc<Pool>>,
    workspaces: Workspaces,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// The most threads a backend may have.
    pub const MAX_THREADS: usize = Pool::MAX_THREADS;

    /// Makes a backend with the machine's best instruction set, on threads that all such backends
    /// share. There are as many as the environment variable `RAYON_NUM_THREADS` says, else as the
    /// system offers to this process. The first [`plan`](Backend::plan) starts them, and fails
    /// where they can't be started.
    #[must_use]
    pub fn new() -> Self {
        let level = Level::available().pop().unwrap_or(Level::Portable);
        Self {
            level,
            subnormals: Subnormals::default(),
            pool: None,
            workspaces: Workspaces::default(),
        }
    }

    /// Makes a backend whose calls use 1 to [`Cpu::MAX_THREADS`] threads: the caller's, and others
    /// of the backend's own.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`] for another number, [`Error::Device`] where the threads can't be
    /// started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        Ok(Self { pool: Some(Arc::new(Pool::start(threads)?)), ..Self::new() })
    }

    /// Returns the same backend with another instruction set of [`Level::available`].
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

    /// Returns the same backend with another treatment of subnormal numbers, which are flushed to
    /// zero by default.
    #[must_use]
    pub fn with_subnormals(self, subnormals: Subnormals) -> Self {
        Self { subnormals, ..self }
    }

    /// Returns how many threads a call may use.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(default_threads, |pool| pool.threads())
    }

    /// The threads of a plan's calls.
    fn workers(&self) -> Result<Workers> {
        let pool = self.pool.clone().map_or_else(Pool::global, Ok)?;
        Ok(Workers { pool, subnormals: self.subnormals })
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
        self.workspaces.trim();
        Ok(())
    }

    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Vec<P>) -> &'a [P] {
        buffer
    }

    fn view_mut<'a, P: Pod + Send + Sync>(&self, buffer: &'a mut Vec<P>) -> &'a mut [P] {
        buffer
    }

    fn plan<T: Element, W: Element, C: Cell>(
        &self,
        cell: &C,
        problem: &Problem,
    ) -> Result<CpuPlan<T, W>> {
        let shapes = problem.shapes::<C>()?;
        if W::DTYPE != T::DTYPE && W::DTYPE != <T::Wide as Element>::DTYPE {
            let what = format!("weights of {} with tensors of {}", W::DTYPE, T::DTYPE);
            let why = "weights have the tensors' type, or f32 beside 16-bit tensors".into();
            return Err(Error::Unsupported { backend: "cpu", what, why });
        }
        let kernel =
            cell_kernel::kernel::<T, C>(cell, problem, &shapes, self.level, self.workers()?)?;
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
    kernel: Box<dyn Kernel<T>>,
    weights: std::marker::PhantomData<fn(W)>,
}

impl<T: Element, W: Element> CpuPlan<T, W> {
    /// The backend that made this plan.
    #[must_use]
    pub fn backend(&self) -> &Cpu {
        &self.cpu
    }

    fn check_lengths(&self, lengths: Option<&[i32]>) -> Result<()> {
        lengths.map_or(Ok(()), |lengths| {
            flashrnn_core::backend::check_lengths(lengths, self.shapes.time)
        })
    }
}

impl<T: Element, W: Element> std::fmt::Debug for CpuPlan<T, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut plan = f.debug_struct("CpuPlan");
        plan.field("dtype", &T::DTYPE).field("weights", &W::DTYPE).field("problem", &self.problem);
        plan.field("cpu", &self.cpu).finish_non_exhaustive()
    }
}

/// The workspace of a pass, which aligns what it holds by itself.
fn workspace(bytes: usize) -> Workspace {
    Workspace { bytes, align: 1 }
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
        Ok(Weights::new(self.layout.clone(), self.kernel.pack(&r, &b)?))
    }

    fn saved(&self) -> Result<Saved<Cpu, T>> {
        Saved::new(&self.cpu, &self.shapes, self.problem.options.save)
    }

    fn forward_workspace(&self) -> Workspace {
        workspace(self.kernel.workspaces()[0])
    }

    fn backward_workspace(&self) -> Workspace {
        workspace(self.kernel.workspaces()[1])
    }

    fn forward(&self, mut call: Forward<'_, Cpu, T>) -> Result<()> {
        call.check(self)?;
        self.check_lengths(call.lengths)?;
        let (given, bytes) = (call.workspace.take(), self.kernel.workspaces()[0]);
        // SAFETY: the memory is this call's, and as large as the kernel says: the caller's, by the
        // check above.
        self.cpu
            .workspaces
            .with(given, bytes, |memory| unsafe { self.kernel.forward(call, memory) })
    }

    fn backward(&self, call: Backward<'_, Cpu, T, W>) -> Result<()> {
        call.check(self)?;
        self.check_lengths(call.lengths)?;
        let Backward {
            weights, states, saved, wx, s0, lengths, resets, d_h, d_states, d_last, ..
        } = call;
        let Backward { d_wx, d_r, d_b, d_s0, accumulate, workspace, .. } = call;
        let Shapes { heads, head_dim, .. } = self.shapes;
        let wanted = d_r.is_some() || d_b.is_some();
        let (d_r, d_b) = (d_r.map(Shared::new), d_b.map(Shared::new));
        let sink: Sink<'_, T::Wide> = &|part| {
            let first = (part.gate * heads + part.head) * head_dim + part.unit;
            if let Some(d_r) = d_r.filter(|_| !part.d_r.is_empty()) {
                // SAFETY: each part of the gradient comes once.
                let d_r = unsafe { d_r.slice(first * head_dim, part.d_b.len() * head_dim) };
                for (d_r, sums) in
                    d_r.chunks_exact_mut(head_dim).zip(part.d_r.chunks_exact(part.stride))
                {
                    put(d_r, &sums[..head_dim], accumulate);
                }
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
            workspace: None,
        };
        let (sink, bytes) = (wanted.then_some(sink), self.kernel.workspaces()[1]);
        // SAFETY: the memory is this call's, and as large as the kernel says: the caller's, by the
        // check above.
        let run = |memory: Memory<'_>| unsafe { self.kernel.backward(call, sink, memory) };
        self.cpu.workspaces.with(workspace, bytes, run)?
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
