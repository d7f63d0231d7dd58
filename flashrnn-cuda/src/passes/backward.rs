//! The backward pass: recomputes the gates if they were not saved, runs the time loop, and computes
//! the gradients of R and b. The side stream gathers the previous h for `d_r` during the time loop,
//! and sums `d_b` during the product that computes `d_r`.

use std::sync::Arc;

use bytemuck::Zeroable;
use flashrnn_core::{Backward, Element, Result, Workspace};

use crate::backend::Cuda;
use crate::call::{Address, BackwardCall, Gates};
use crate::kernels::launch::Module;
use crate::memory::scratch::{self, Bump, Scratch};
use crate::passes::fused::FusedBackward;
use crate::passes::grid::GridPass;
use crate::passes::recompute::{Recompute, RecomputeScratch, Rows};
use crate::passes::time_loop::{TABLE_BYTES, TimeLoop};
use crate::passes::weight_grad::{WeightGrad, WeightGradScratch, bias_partial_len};
use crate::passes::{Common, address, address_mut, clip};

/// The kernels of the backward pass.
pub(crate) struct BackwardPass {
    time_steps: TimeSteps,
    recompute: Recompute,
    weight_grad: WeightGrad,
}

/// The kernels of the backward pass's time loop.
pub(crate) enum TimeSteps {
    /// One launch for all time steps.
    Fused(Box<FusedBackward>),
    /// One launch for all time steps, over the whole GPU.
    Grid(Box<GridPass>),
    /// One launch per time step.
    Alternating(Arc<TimeLoop>),
}

impl BackwardPass {
    /// Returns a workspace that suffices for any backward pass of the plan.
    pub(crate) fn workspace(&self, common: &Common) -> Workspace {
        let needs = BackwardNeeds {
            d_r: true,
            d_b: true,
            exchange: self.time_steps.exchange_bytes(common),
            steps: matches!(self.time_steps, TimeSteps::Alternating(_)),
            misaligned: true,
        };
        scratch::workspace(|bump| BackwardScratch::cut(common, bump, needs))
    }

    /// Gets the kernels from the modules of `programs::recompute` and `programs::weight_grad`.
    pub(crate) fn new(
        time_steps: TimeSteps,
        recompute: &Arc<Module>,
        weight_grad: &Arc<Module>,
    ) -> Result<Self> {
        Ok(Self {
            time_steps,
            recompute: Recompute::new(recompute, weight_grad)?,
            weight_grad: WeightGrad::new(recompute, weight_grad)?,
        })
    }

    /// Enqueues a call. The caller has checked its tensors and entered the context.
    pub(crate) fn run<T: Element, W: Element>(
        &self,
        common: &Common,
        call: Backward<'_, Cuda, T, W>,
    ) -> Result<()> {
        let needs = BackwardNeeds {
            d_r: call.d_r.is_some(),
            d_b: call.d_b.is_some(),
            exchange: self.time_steps.exchange_bytes(common),
            steps: matches!(self.time_steps, TimeSteps::Alternating(_)),
            misaligned: !call.d_wx.ptr().is_multiple_of(16),
        };
        let scratch = Scratch::new(&common.device, call.workspace.as_ref(), |bump| {
            BackwardScratch::cut(common, bump, needs)
        })?;
        let scratch = &scratch.buffers;
        let arguments = arguments(common, &call, scratch);
        let BackwardCall { sizes, s0, lengths, resets, d_gates, .. } = arguments;
        let rows = Rows { sizes, s0, lengths, resets };
        let stream = common.stream();
        let previous_h = |stream| {
            let (states, out) = (arguments.states, scratch.previous_h);
            self.recompute.previous_h(common, stream, &rows, states, out)
        };
        if let Some(recompute) = &scratch.recompute {
            previous_h(stream)?;
            let packed = call.weights.packed().buffers();
            let inputs = [packed.forward, packed.b, address(&call.wx), scratch.previous_h];
            let (gates, wide) = (arguments.gates, arguments.wide_gates);
            self.recompute.gates(common, &rows, inputs, gates, wide, recompute)?;
        }
        let side = &common.device.side;
        let time_steps = || self.time_steps.run(common, arguments, scratch.table);
        if needs.d_r && scratch.recompute.is_none() {
            side.run(stream, time_steps, previous_h)?;
        } else {
            time_steps()?;
        }

        let d_r = || match (&call.d_r, &scratch.d_r) {
            (Some(d_r), Some(scratch_of_d_r)) => self.weight_grad.d_r(
                common,
                d_gates,
                scratch.previous_h,
                d_r.ptr(),
                call.accumulate,
                scratch_of_d_r,
            ),
            _ => Ok(()),
        };
        let Some(d_b) = &call.d_b else { return d_r() };
        side.run(stream, d_r, |stream| {
            let (partial, accumulate) = (scratch.bias, call.accumulate);
            self.weight_grad.d_b(common, stream, d_gates, partial, d_b.ptr(), accumulate)
        })
    }
}

impl TimeSteps {
    /// Returns the bytes that blocks or steps exchange dg in.
    fn exchange_bytes(&self, common: &Common) -> usize {
        match self {
            Self::Fused(_) => 0,
            Self::Grid(grid) => grid.exchange_bytes(),
            Self::Alternating(_) => 2 * exchanged_dg(common) * common.bytes,
        }
    }

    /// Enqueues all steps, and one more if the gradient of s0 is wanted.
    fn run(&self, common: &Common, call: BackwardCall, table: Address) -> Result<()> {
        match self {
            Self::Fused(fused) => fused.run(call),
            Self::Grid(grid) => grid.backward(call),
            Self::Alternating(time_loop) => {
                let steps = common.shapes.time + usize::from(call.d_s0 != 0);
                time_loop.run(&call, exchanged_dg(common), steps, table)
            }
        }
    }
}

/// Returns the arguments of the time loop.
fn arguments<T: Element, W: Element>(
    common: &Common,
    call: &Backward<'_, Cuda, T, W>,
    scratch: &BackwardScratch,
) -> BackwardCall {
    let options = &common.problem.options;
    let d_gates = Gates { external: call.d_wx.ptr(), inner: scratch.d_inner };
    let (wide_states, saved_wide_gates) = common.wide_at(call.saved.wide.ptr());
    // Recomputed gates share memory with their gradients: a step reads its gates before it writes
    // dg.
    let (gates, wide_gates) = match &scratch.recompute {
        Some(_) => (d_gates, scratch.wide_gates),
        None => (common.gates_at(call.saved.gates.ptr()), saved_wide_gates),
    };
    let (d_states, d_states_count) = match (&call.d_h, &call.d_states) {
        (Some(d_h), _) => (d_h.ptr(), 1),
        (None, Some(d_states)) => (d_states.ptr(), common.shapes.states as i32),
        (None, None) => (0, 0),
    };
    BackwardCall {
        sizes: common.sizes,
        d_states_count,
        cut_recurrent_grad: options.cut_recurrent_grad.into(),
        forward_clip: clip(options.forward_clip),
        recurrent_grad_clip: clip(options.recurrent_grad_clip),
        r: call.weights.packed().buffers().backward,
        s0: address(&call.s0),
        lengths: address(&call.lengths),
        resets: address(&call.resets),
        states: call.states.ptr(),
        gates,
        wide_states,
        wide_gates,
        d_states,
        d_last: address(&call.d_last),
        exchange: scratch.exchange,
        d_state: scratch.d_state,
        d_gates,
        d_s0: address_mut(&call.d_s0),
        ..BackwardCall::zeroed()
    }
}

/// Returns the number of elements that a backward step hands to the next: dg `[B, N, Gr, depth]`.
fn exchanged_dg(common: &Common) -> usize {
    common.exchanged_h() * common.shapes.recurrent
}

/// The optional buffers that a backward pass needs, in addition to those of every pass of its plan.
#[derive(Clone, Copy)]
struct BackwardNeeds {
    d_r: bool,
    d_b: bool,
    /// Bytes in which dg is exchanged.
    exchange: usize,
    /// Each step is a launch of its own.
    steps: bool,
    /// `d_wx` does not start at a multiple of 16 bytes.
    misaligned: bool,
}

/// The buffers of a backward pass. The first three are in use until the pass ends. Three groups are
/// used one after the other and share memory: `recompute`; `exchange`, `d_state` and `table`; `bias`
/// and `d_r`.
struct BackwardScratch {
    /// `[tokens, G - Gx, N, D]`: dg of the gates that are not in `d_wx`.
    d_inner: Address,
    /// `[tokens, N, depth]`
    previous_h: Address,
    /// `[WIDE_GATES, tokens, N, D]`, if the gates are recomputed.
    wide_gates: Address,
    recompute: Option<RecomputeScratch>,
    /// `[2, B, N, Gr, depth]`, or the words of a grid kernel.
    exchange: Address,
    /// `[S, B, N, D]`
    d_state: Address,
    /// The arguments of steps, if each is a launch of its own.
    table: Address,
    /// `[parts, G, N, D]`
    bias: Address,
    d_r: Option<WeightGradScratch>,
}

impl BackwardScratch {
    fn cut(common: &Common, bump: &mut Bump, needs: BackwardNeeds) -> Self {
        let (shapes, bytes) = (&common.shapes, common.bytes);
        let tokens = shapes.tokens();
        let again = common.recomputes();
        let if_needed = |needed: bool, len: usize| if needed { len } else { 0 };
        let previous_h = if_needed(again || needs.d_r, tokens * shapes.heads * common.depth);
        let wide = again && bytes < size_of::<f32>();
        let wide_gates = if_needed(wide, shapes.wide_gates.len() * tokens * shapes.units());
        let d_inner = bump.take::<u8>(tokens * shapes.inner() * shapes.units() * bytes);
        let previous_h = bump.take::<u8>(previous_h * bytes);
        let wide_gates = bump.take::<f32>(wide_gates);
        let recompute = bump.phase(|bump| again.then(|| RecomputeScratch::cut(common, bump)));
        let [exchange, d_state, table] = bump.phase(|bump| {
            let d_state = if_needed(needs.steps, shapes.state().iter().product());
            let table = if_needed(needs.steps, TABLE_BYTES);
            [bump.take::<u8>(needs.exchange), bump.take::<f32>(d_state), bump.take::<u8>(table)]
        });
        // d_b is summed during the product for d_r, so both are in the last phase.
        let bias = bump.take::<f32>(if_needed(needs.d_b, bias_partial_len(common)));
        let d_r = needs.d_r.then(|| WeightGradScratch::cut(common, bump, needs.misaligned));
        Self { d_inner, previous_h, wide_gates, recompute, exchange, d_state, table, bias, d_r }
    }
}
