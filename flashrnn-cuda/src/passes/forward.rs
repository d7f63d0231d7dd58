//! The forward pass.

use std::sync::Arc;

use bytemuck::Zeroable;
use flashrnn_core::{Element, Forward, Result, Step, Weights, Workspace};

use crate::backend::Cuda;
use crate::call::{Address, ForwardCall, Sizes};
use crate::memory::Buffer;
use crate::memory::scratch::{self, Bump, Scratch};
use crate::passes::fused::FusedForward;
use crate::passes::grid::GridPass;
use crate::passes::time_loop::TimeLoop;
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
        let needs =
            ForwardNeeds { state: arguments.state == 0, exchange: self.exchange_bytes(common) };
        let scratch = Scratch::new(&common.device, workspace.as_ref(), |bump| {
            ForwardScratch::cut(common, bump, needs)
        })?;
        let ForwardScratch { state, exchange } = scratch.buffers;
        let state = if needs.state { state } else { arguments.state };
        let arguments = ForwardCall { state, ..arguments };
        match self {
            Self::Fused(fused) => fused.run(arguments),
            Self::Grid { all, .. } => all.forward(ForwardCall { exchange, ..arguments }),
            Self::Alternating(time_loop) => run_steps(common, time_loop, arguments, exchange),
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
                let exchange: Buffer<T> = common.device.alloc(2 * common.exchanged_h())?;
                run_steps(common, time_loop, arguments, exchange.ptr())
            }
        }
    }

    /// Returns the bytes that blocks or steps exchange h in.
    fn exchange_bytes(&self, common: &Common) -> usize {
        match self {
            Self::Fused(_) => 0,
            Self::Grid { all, .. } => all.exchange_bytes(),
            Self::Alternating(_) => 2 * common.exchanged_h() * common.bytes,
        }
    }

    /// Returns a workspace that suffices for any forward pass of the plan.
    pub(crate) fn workspace(&self, common: &Common) -> Workspace {
        let needs = ForwardNeeds { state: true, exchange: self.exchange_bytes(common) };
        scratch::workspace(|bump| ForwardScratch::cut(common, bump, needs))
    }
}

/// Returns the arguments that depend only on the plan and its weights.
fn with_weights<T: Element>(common: &Common, weights: &Weights<Cuda, T>) -> ForwardCall {
    let packed = weights.packed();
    ForwardCall {
        forward_clip: clip(common.problem.options.forward_clip),
        r: packed.forward.ptr(),
        b: packed.b.ptr(),
        ..ForwardCall::zeroed()
    }
}

/// Enqueues one launch per time step.
fn run_steps(
    common: &Common,
    time_loop: &TimeLoop,
    call: ForwardCall,
    exchange: Address,
) -> Result<()> {
    let call = ForwardCall { exchange, ..call };
    time_loop.run(&call, common.exchanged_h(), call.sizes.time as usize)
}

/// The optional buffers that a forward pass needs.
#[derive(Clone, Copy)]
struct ForwardNeeds {
    /// The call has no `last` to hold the state.
    state: bool,
    /// Bytes in which h is exchanged.
    exchange: usize,
}

/// The buffers of a forward pass.
struct ForwardScratch {
    /// `[S, B, N, D]`
    state: Address,
    /// `[2, B, N, depth]`, or the words of a grid kernel.
    exchange: Address,
}

impl ForwardScratch {
    fn cut(common: &Common, bump: &mut Bump, needs: ForwardNeeds) -> Self {
        let state = if needs.state { common.shapes.state().iter().product() } else { 0 };
        Self { state: bump.take::<f32>(state), exchange: bump.take::<u8>(needs.exchange) }
    }
}
