//! Plans, which check the arguments of calls and pass them to the engine.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use flashrnn_core::{
    Backward, Cell, Element, Error, Forward, Plan, Problem, Real, Result, Saved, Shapes, Step,
    Weights, WeightsLayout, Workspace, backend,
};

use crate::batched::WeightGradPart;
use crate::cpu::Cpu;
use crate::dispatch;
use crate::engine::{BackwardArgs, Engine};
use crate::kernel::PackedOrder;
use crate::memory::{SharedSlice, WorkspaceView, try_filled};

/// A problem ready to run on the CPU.
pub struct CpuPlan<T: Element, W: Element> {
    cpu: Cpu,
    problem: Problem,
    shapes: Shapes,
    layout: Arc<WeightsLayout<PackedOrder>>,
    engine: Box<dyn Engine<T>>,
    weights: PhantomData<fn(W)>,
}

impl<T: Element, W: Element> CpuPlan<T, W> {
    /// Makes a plan; see [`Backend::plan`](flashrnn_core::Backend::plan).
    pub(crate) fn new<C: Cell>(cpu: &Cpu, cell: &C, problem: &Problem) -> Result<Self> {
        let shapes = problem.shapes::<C>()?;
        if W::DTYPE != T::DTYPE && W::DTYPE != <T::Wide as Element>::DTYPE {
            return Err(Error::Unsupported {
                backend: "cpu",
                what: format!("weights of {} with tensors of {}", W::DTYPE, T::DTYPE),
                why: "weights have the tensors' type, or f32 with 16-bit tensors".into(),
            });
        }
        let engine = dispatch::engine::<T, C>(cell, problem, &shapes, cpu.level, cpu.workers()?)?;
        Ok(Self {
            cpu: cpu.clone(),
            problem: problem.clone(),
            layout: Arc::new(shapes.weights_layout(engine.order())),
            shapes,
            engine,
            weights: PhantomData,
        })
    }

    /// Returns the backend that made this plan.
    #[must_use]
    pub fn backend(&self) -> &Cpu {
        &self.cpu
    }

    fn check_lengths(&self, lengths: Option<&[i32]>) -> Result<()> {
        lengths.map_or(Ok(()), |lengths| backend::check_lengths(lengths, self.shapes.time))
    }
}

impl<T: Element, W: Element> fmt::Debug for CpuPlan<T, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut plan = f.debug_struct("CpuPlan");
        plan.field("dtype", &T::DTYPE).field("weights", &W::DTYPE).field("problem", &self.problem);
        plan.field("cpu", &self.cpu).finish_non_exhaustive()
    }
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
        Ok(Weights::new(self.layout.clone(), self.engine.pack(&r, &b)?))
    }

    fn saved(&self) -> Result<Saved<Cpu, T>> {
        Saved::new(&self.cpu, &self.shapes, self.problem.options.save)
    }

    fn forward_workspace(&self) -> Workspace {
        unaligned_workspace(self.engine.forward_workspace())
    }

    fn backward_workspace(&self) -> Workspace {
        unaligned_workspace(self.engine.backward_workspace())
    }

    fn forward(&self, mut call: Forward<'_, Cpu, T>) -> Result<()> {
        call.check(self)?;
        self.check_lengths(call.lengths)?;
        let (workspace, bytes) = (call.workspace.take(), self.engine.forward_workspace());
        // SAFETY: only this call uses the memory. `check` has verified the size of a caller's
        // workspace.
        let run = |memory: WorkspaceView<'_>| unsafe { self.engine.forward(call, memory) };
        self.cpu.workspaces.with(workspace, bytes, run)
    }

    fn backward(&self, call: Backward<'_, Cpu, T, W>) -> Result<()> {
        call.check(self)?;
        self.check_lengths(call.lengths)?;
        let Shapes { heads, head_dim, states, .. } = self.shapes;
        let wanted = call.d_r.is_some() || call.d_b.is_some();
        let grad = WeightGradOutput {
            heads,
            head_dim,
            d_r: call.d_r.map(SharedSlice::new),
            d_b: call.d_b.map(SharedSlice::new),
            accumulate: call.accumulate,
        };
        // SAFETY: the engine passes each part once.
        let sink = |part: WeightGradPart<'_, T::Wide>| unsafe { grad.store(part) };
        let args = BackwardArgs {
            weights: call.weights.packed(),
            states: call.states,
            gates: call.saved.gates,
            wide: call.saved.wide,
            wx: call.wx,
            s0: call.s0,
            lengths: call.lengths,
            resets: call.resets,
            d_states: call.d_states.or(call.d_h),
            d_states_len: if call.d_states.is_some() { states } else { 1 },
            d_last: call.d_last,
            d_wx: call.d_wx,
            d_s0: call.d_s0,
            weight_grad: wanted.then_some(&sink),
        };
        // SAFETY: as in `forward`.
        let run = |memory: WorkspaceView<'_>| unsafe { self.engine.backward(args, memory) };
        self.cpu.workspaces.with(call.workspace, self.engine.backward_workspace(), run)?
    }

    fn step(&self, call: Step<'_, Cpu, T>) -> Result<()> {
        call.check(self)?;
        self.engine.step(call)
    }
}

/// Returns the size of a workspace, which may have any alignment.
fn unaligned_workspace(bytes: usize) -> Workspace {
    Workspace { bytes, align: 1 }
}

/// Returns the elements in their wide type, without a copy if they are already wide.
fn widened<W: Element, S: Element>(x: &[W]) -> Result<Cow<'_, [S]>> {
    if W::DTYPE == S::DTYPE {
        return Ok(bytemuck::cast_slice(x).into());
    }
    let mut wide = try_filled(S::default(), x.len())?;
    for (wide, x) in wide.iter_mut().zip(x) {
        *wide = S::from_f64(x.to_f64());
    }
    Ok(wide.into())
}

/// The caller's tensors for the gradients of R and b.
struct WeightGradOutput<'a, W> {
    heads: usize,
    head_dim: usize,
    /// `[Gr, N, D_out, D_in]`
    d_r: Option<SharedSlice<'a, W>>,
    /// `[G, N, D]`
    d_b: Option<SharedSlice<'a, W>>,
    /// Whether to add to the tensors instead of overwriting them.
    accumulate: bool,
}

impl<W: Element> WeightGradOutput<'_, W> {
    /// Stores or adds a part.
    ///
    /// # Safety
    /// No other thread stores the same part.
    unsafe fn store<S: Element + Real>(&self, part: WeightGradPart<'_, S>) {
        let (d, units) = (self.head_dim, part.d_b.len());
        let first = (part.gate * self.heads + part.head) * d + part.unit;
        if let Some(d_r) = self.d_r.filter(|_| !part.d_r.is_empty()) {
            // SAFETY: guaranteed by the caller.
            let d_r = unsafe { d_r.slice(first * d, units * d) };
            for (d_r, sums) in d_r.chunks_exact_mut(d).zip(part.d_r.chunks_exact(part.stride)) {
                self.store_sums(d_r, &sums[..d]);
            }
        }
        if let Some(d_b) = self.d_b {
            // SAFETY: guaranteed by the caller.
            self.store_sums(unsafe { d_b.slice(first, units) }, part.d_b);
        }
    }

    /// Stores or adds sums. Additions are in the type `S`, which is at least as wide as `W`.
    fn store_sums<S: Element + Real>(&self, out: &mut [W], sums: &[S]) {
        for (out, &sum) in out.iter_mut().zip(sums) {
            let before = if self.accumulate { S::from_f64(out.to_f64()) } else { S::default() };
            *out = W::from_f64((before + sum).to_f64());
        }
    }
}
