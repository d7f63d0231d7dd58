//! The forward pass.

use std::sync::Arc;

use bytemuck::Zeroable;
use flashrnn_core::{Element, Forward, Result, Step, Weights, Workspace};

use crate::backend::Cuda;
use crate::call::{Address, ForwardCall, Sizes};
use crate::memory::scratch::{self, Bump, Scratch};
use crate::passes::fused::FusedForward;
use crate::passes::grid::GridPass;
use crate::passes::time_loop::{TABLE_BYTES, TimeLoop};
use crate::passes::{Common, address, address_mut, clip};

/// The kernels of the forward pass.
pub(crate) enum ForwardPass {
    /// One launch for all time steps.
    Fused(Box<FusedForward>),
    /// One launch for all time steps, over the whole GPU. Single steps are launches of the other
    /// kernels.
    Grid { all: Box<GridPass>, single: Arc<TimeLoop> },
    /// One launch per time step.
    Alternating(Arc<TimeLoop>),
}

impl ForwardPass {
    /// Enqueues a call. The caller has checked its tensors and entered the context.
    pub(crate) fn run<T: Element>(
        &self,
        common: &Common,
        call: Forward<'_, Cuda, T>,
    ) -> Result<()> {
        let Forward { weights, wx, s0, lengths, resets, h, states, last, saved, workspace } = call;
        let (gates, wide) = saved.map_or((0, 0), |saved| (saved.gates.ptr(), saved.wide.ptr()));
        let (wide_states, wide_gates) = if wide == 0 { (0, 0) } else { common.wide_at(wide) };
        let arguments = ForwardCall {
            sizes: common.sizes,
            save_gates: (gates != 0 && !common.recomputes()).into(),
            wx: wx.ptr(),
            s0: address(&s0),
            lengths: address(&lengths),
            resets: address(&resets),
            state: address_mut(&last),
            h: address_mut(&h),
            states: address_mut(&states),
            gates: common.gates_at(gates),
            wide_states,
            wide_gates,
            ..with_weights(common, weights)
        };
        let needs = self.needs(common, arguments.state == 0);
        let scratch = Scratch::new(&common.device, workspace.as_ref(), |bump| {
            ForwardScratch::cut(common, bump, needs)
        })?;
        let ForwardScratch { state, exchange, table } = scratch.buffers;
        let state = if needs.state { state } else { arguments.state };
        let arguments = ForwardCall { state, ..arguments };
        match self {
            Self::Fused(fused) => fused.run(arguments),
            Self::Grid { all, .. } => all.forward(ForwardCall { exchange, ..arguments }),
            Self::Alternating(time_loop) => {
                run_steps(common, time_loop, ForwardCall { exchange, ..arguments }, table)
            }
        }
    }

    /// Enqueues one step, which updates the state in place. The caller has checked the tensors and
    /// entered the context.
    pub(crate) fn step<T: Element>(&self, common: &Common, call: Step<'_, Cuda, T>) -> Result<()> {
        let Step { weights, wx, state, h } = call;
        let arguments = ForwardCall {
            sizes: Sizes { time: 1, reverse: 0, ..common.sizes },
            wx: wx.ptr(),
            s0: state.ptr(),
            state: state.ptr(),
            h: address_mut(&h),
            ..with_weights(common, weights)
        };
        match self {
            Self::Fused(fused) => fused.run(arguments),
            Self::Grid { single: time_loop, .. } | Self::Alternating(time_loop) => {
                let needs = ForwardNeeds::of_steps(common, false);
                let scratch = Scratch::new(&common.device, None, |bump| {
                    ForwardScratch::cut(common, bump, needs)
                })?;
                let ForwardScratch { exchange, table, .. } = scratch.buffers;
                run_steps(common, time_loop, ForwardCall { exchange, ..arguments }, table)
            }
        }
    }

    /// Returns the buffers that a call needs. `state` says that it has no `last` to hold the state.
    fn needs(&self, common: &Common, state: bool) -> ForwardNeeds {
        match self {
            Self::Fused(_) => ForwardNeeds { state, exchange: 0, table: false },
            Self::Grid { all, .. } => {
                ForwardNeeds { state, exchange: all.exchange_bytes(), table: false }
            }
            Self::Alternating(_) => ForwardNeeds::of_steps(common, state),
        }
    }

    /// Returns a workspace that suffices for any forward pass of the plan.
    pub(crate) fn workspace(&self, common: &Common) -> Workspace {
        let needs = self.needs(common, true);
        scratch::workspace(|bump| ForwardScratch::cut(common, bump, needs))
    }
}

/// Returns the arguments that depend only on the plan and its weights.
fn with_weights<T: Element>(common: &Common, weights: &Weights<Cuda, T>) -> ForwardCall {
    let packed = weights.packed().buffers();
    ForwardCall {
        forward_clip: clip(common.problem.options.forward_clip),
        r: packed.forward,
        b: packed.b,
        ..ForwardCall::zeroed()
    }
}

/// Enqueues one launch per time step.
fn run_steps(
    common: &Common,
    time_loop: &TimeLoop,
    call: ForwardCall,
    table: Address,
) -> Result<()> {
    time_loop.run(&call, common.exchanged_h(), call.sizes.time as usize, table)
}

/// The optional buffers that a forward pass needs.
#[derive(Clone, Copy)]
struct ForwardNeeds {
    /// The call has no `last` to hold the state.
    state: bool,
    /// Bytes in which blocks or steps exchange h.
    exchange: usize,
    /// Each step is a launch of its own.
    table: bool,
}

impl ForwardNeeds {
    /// Returns the needs of a call with one launch per time step.
    fn of_steps(common: &Common, state: bool) -> Self {
        Self { state, exchange: 2 * common.exchanged_h() * common.bytes, table: true }
    }
}

/// The buffers of a forward pass.
struct ForwardScratch {
    /// `[S, B, N, D]`
    state: Address,
    /// `[2, B, N, depth]`, or the words of a grid kernel.
    exchange: Address,
    /// The arguments of steps, if each is a launch of its own.
    table: Address,
}

impl ForwardScratch {
    fn cut(common: &Common, bump: &mut Bump, needs: ForwardNeeds) -> Self {
        let state = if needs.state { common.shapes.state().iter().product() } else { 0 };
        Self {
            state: bump.take::<f32>(state),
            exchange: bump.take::<u8>(needs.exchange),
            table: bump.take::<u8>(if needs.table { TABLE_BYTES } else { 0 }),
        }
    }
}
