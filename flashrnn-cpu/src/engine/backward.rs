//! Runs the backward pass: recomputes the gates, runs the time loop, then computes the weight
//! gradients.

use flashrnn_core::{Element, Result};

use super::context::Context;
use crate::batched::{
    Recompute, RecomputeScratch, Steps, WeightGrad, WeightGradScratch, WeightGradSink,
};
use crate::cell_kernel::CellKernel;
use crate::kernel::{BackwardCall, Block, Packed, clear_padding};
use crate::memory::{SharedSlice, Span, WorkspaceLayout, WorkspaceView};
use crate::schedule::{Pass, Row, Task, TimeAxis, TimeLoop, sort_rows};
use crate::simd::Vector;

/// The arguments of a backward pass, without the element type of the weights.
pub(crate) struct BackwardArgs<'a, T: Element> {
    pub weights: &'a Packed<T::Wide>,
    /// `[S, B, T, N, D]`
    pub states: &'a [T],
    /// The saved gates; empty with `Save::Recompute`.
    pub gates: &'a [T],
    /// The saved wide states, then the saved wide gates; empty if `T` is wide.
    pub wide: &'a [T::Wide],
    /// `[B, T, Gx, N, D]`
    pub wx: Option<&'a [T]>,
    /// `[S, B, N, D]`
    pub s0: Option<&'a [T::Wide]>,
    /// `[B]`
    pub lengths: Option<&'a [i32]>,
    /// `[B, T]`
    pub resets: Option<&'a [u8]>,
    /// The gradients of the first `d_states_len` states, `[d_states_len, B, T, N, D]`.
    pub d_states: Option<&'a [T]>,
    pub d_states_len: usize,
    /// `[S, B, N, D]`
    pub d_last: Option<&'a [T::Wide]>,
    /// `[B, T, Gx, N, D]`, written.
    pub d_wx: &'a mut [T],
    /// `[S, B, N, D]`, written.
    pub d_s0: Option<&'a mut [T::Wide]>,
    /// Receives the gradients of R and b.
    pub weight_grad: Option<WeightGradSink<'a, T::Wide>>,
}

/// The time loop of the backward pass, and the layout of its workspace. The memory of the three
/// stages overlaps.
pub(super) struct BackwardEngine {
    bytes: usize,
    rows: Span,
    starts: Span,
    d_inner: Span,
    remainders: Span,
    recompute: RecomputeScratch,
    time_loop: TimeLoop,
    weight_grad: WeightGradScratch,
}

impl BackwardEngine {
    pub fn new<T: Element, V: Vector<T>>(context: &Context<T>) -> Self {
        let Context { shapes, workers, .. } = context;
        let mut layout = WorkspaceLayout::default();
        let unit_steps = shapes.tokens() * shapes.units();
        let wide_gates = if is_narrow::<T>() { shapes.wide_gates.len() } else { 0 };
        let rows = layout.add::<Row>(shapes.batch);
        let starts = layout.add::<usize>(shapes.batch + 1);
        let d_inner = layout.add::<T>(shapes.inner() * unit_steps);
        let remainders = layout.add::<T>(wide_gates * unit_steps);
        let stage = layout.end();
        let recompute =
            RecomputeScratch::new::<V>(&mut layout, &context.forward, workers.threads());
        layout.rewind(stage);
        let panels = &context.backward;
        let time_loop = TimeLoop::new::<T::Wide>(
            &mut layout,
            context.loop_sizes::<V>(panels),
            context.division::<V>(panels),
            workers.threads(),
        );
        layout.rewind(stage);
        let weight_grad = WeightGradScratch::new::<V>(&mut layout, shapes, workers.threads());
        let bytes = layout.bytes();
        Self { bytes, rows, starts, d_inner, remainders, recompute, time_loop, weight_grad }
    }

    /// Returns the bytes of the workspace.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Computes the gradients.
    ///
    /// # Safety
    /// `memory` has [`Self::bytes`] bytes, and nothing else uses it; the machine supports `V`'s
    /// instruction set.
    pub unsafe fn run<T: Element, V: Vector<T>>(
        &self,
        context: &Context<T>,
        args: BackwardArgs<'_, T>,
        memory: WorkspaceView<'_>,
    ) -> Result<()> {
        let BackwardArgs { weights, states, s0, .. } = args;
        let packed = transposed(context, weights)?;
        // SAFETY: nothing else takes these spans.
        let (rows, starts, d_inner, remainders) = unsafe {
            (
                memory.fill(self.rows, |b| context.row(args.lengths, b)),
                memory.slice(self.starts),
                memory.slice(self.d_inner),
                memory.slice(self.remainders),
            )
        };
        sort_rows(rows);
        let (rows, steps) = (&*rows, &Steps::new(rows, starts));
        let time = context.time(args.resets);
        let gates = (!args.gates.is_empty()).then_some(args.gates);
        let recomputed = gates.is_none() && !remainders.is_empty();
        if let (None, Some(wx)) = (gates, args.wx) {
            let recompute = Recompute {
                time,
                panels: context.forward,
                packed: weights.forward(),
                b: weights.b(),
                wx,
                states,
                s0,
                steps,
                d_wx: SharedSlice::new(&mut *args.d_wx),
                d_inner: SharedSlice::new(&mut *d_inner),
                remainders: recomputed.then(|| SharedSlice::new(&mut *remainders)),
            };
            // SAFETY: guaranteed by the caller; no other stage is running.
            unsafe { recompute.run::<V>(&context.workers, memory, self.recompute) };
        }
        let (wide, wide_gates) = args.wide.split_at(wide_states_len::<T>(time));
        let call = BackwardCall {
            time,
            forward_clip: context.options.forward_clip,
            recurrent_grad_clip: context.options.recurrent_grad_clip,
            cut_recurrent_grad: context.options.cut_recurrent_grad,
            panels: context.backward,
            packed,
            states,
            s0,
            wide: (!wide.is_empty()).then_some(wide),
            wide_gates: (!wide_gates.is_empty()).then_some(wide_gates),
            remainders: recomputed.then_some(&*remainders),
            gates,
            d_states: args.d_states,
            d_states_len: args.d_states_len,
            d_last: args.d_last,
            d_wx: SharedSlice::new(&mut *args.d_wx),
            d_inner: SharedSlice::new(&mut *d_inner),
            d_s0: args.d_s0.map(SharedSlice::new),
        };
        let pass = BackwardPass { cell: &*context.cell, call };
        // SAFETY: guaranteed by the caller; no other stage is running.
        unsafe { self.time_loop.run(memory, &context.workers, rows, &pass) };
        if let Some(sink) = args.weight_grad {
            let (d_wx, d_inner) = (&*args.d_wx, &*d_inner);
            let grad = WeightGrad { time, states, s0, d_wx, d_inner, steps };
            // SAFETY: guaranteed by the caller; no other stage is running.
            unsafe { grad.run::<V>(&context.workers, memory, self.weight_grad, sink) };
        }
        Ok(())
    }
}

/// Returns whether storing a wide number as `T` rounds it.
fn is_narrow<T: Element>() -> bool {
    size_of::<T>() < size_of::<T::Wide>()
}

/// Returns the number of elements of the wide states in [`BackwardArgs::wide`].
fn wide_states_len<T: Element>(time: TimeAxis<'_>) -> usize {
    let shapes = time.shapes;
    if is_narrow::<T>() { shapes.wide.len() * shapes.tokens() * shapes.units() } else { 0 }
}

/// Returns R in the order of the backward pass. The first use packs it from the order of the
/// forward pass.
fn transposed<'a, T: Element>(
    context: &Context<T>,
    weights: &'a Packed<T::Wide>,
) -> Result<&'a [T::Wide]> {
    let Context { shapes, forward, backward, workers, .. } = context;
    weights.transposed(|transposed| {
        let (d, head_len) = (shapes.head_dim, forward.len());
        // Term (gate, j) of the output for `unit` is term `unit` of the forward pass's output for
        // (gate, j).
        backward.pack(workers, weights.forward(), transposed, |head, _, unit, term| {
            let (gate, j) = (term / d, term % d);
            let (start, step) = forward.output(gate, j / forward.lanes);
            (head * head_len + start + unit * step + j % forward.lanes, step)
        });
    })
}

/// A call and the cell's kernel that computes it.
struct BackwardPass<'a, T: Element> {
    /// Compiled for an instruction set that the machine supports.
    cell: &'a dyn CellKernel<T>,
    call: BackwardCall<'a, T>,
}

impl<T: Element> Pass<T::Wide> for BackwardPass<'_, T> {
    unsafe fn begin(&self, task: &Task<'_, T::Wide>) {
        // SAFETY: guaranteed by the caller.
        unsafe { clear_padding(&self.call, task) }
    }

    /// Returns the number of steps of the task's longest row, plus one if `d_s0` is wanted.
    fn steps(&self, task: &Task<'_, T::Wide>) -> usize {
        task.rows.first().map_or(0, |row| row.length) + usize::from(self.call.d_s0.is_some())
    }

    unsafe fn block(
        &self,
        task: &Task<'_, T::Wide>,
        step: usize,
        block: usize,
        scratch: &mut [T::Wide],
    ) {
        // SAFETY: guaranteed by the caller; the machine supports the kernel's instruction set.
        unsafe { self.cell.backward(Block { call: &self.call, task, step, block, scratch }) }
    }
}
