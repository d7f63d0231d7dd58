//! The forward pass: a call's arguments for the kernels.

use bytemuck::Zeroable;
use flashrnn_core::{Element, Forward, Result, Step, Weights};

use crate::call::{Address, ForwardCall, Sizes};
use crate::device::Cuda;
use crate::engine::{Engine, address, address_mut, clip, recompute};
use crate::memory::Buffer;
use crate::memory::scratch::ForwardScratch;

impl Engine {
    pub(crate) fn forward<T: Element>(&self, call: Forward<'_, Cuda, T>) -> Result<()> {
        let Forward { weights, wx, s0, lengths, resets, h, states, last, saved, workspace } = call;
        let (gates, wide) = saved.map_or((0, 0), |saved| (saved.gates.ptr(), saved.wide.ptr()));
        let (wide_states, wide_gates) = if wide == 0 { (0, 0) } else { self.wide_at(wide) };
        let arguments = ForwardCall {
            sizes: self.sizes,
            save_gates: (gates != 0 && !recompute(&self.problem)).into(),
            wx: wx.ptr(),
            s0: address(&s0),
            lengths: address(&lengths),
            resets: address(&resets),
            carried: address_mut(&last),
            h: address_mut(&h),
            states: address_mut(&states),
            gates: self.gates_at(gates),
            wide_states,
            wide_gates,
            ..self.weighted(weights)
        };
        let fused = self.fused_forward.as_ref();
        let scratch = self.scratch(workspace.as_ref(), |bump| {
            self.forward_scratch(bump, arguments.carried == 0, fused.is_none())
        })?;
        let ForwardScratch { carried, exchange } = scratch.buffers;
        let carried = if carried == 0 { arguments.carried } else { carried };
        let arguments = ForwardCall { carried, ..arguments };
        match fused {
            Some(fused) => fused.run(arguments),
            None => self.forward_steps(arguments, exchange),
        }
    }

    /// One step from the state before it, in place.
    pub(crate) fn step<T: Element>(&self, call: Step<'_, Cuda, T>) -> Result<()> {
        let Step { weights, wx, state, h } = call;
        let arguments = ForwardCall {
            sizes: Sizes { time: 1, reverse: 0, ..self.sizes },
            wx: wx.ptr(),
            s0: state.ptr(),
            carried: state.ptr(),
            h: address_mut(&h),
            ..self.weighted(weights)
        };
        if let Some(fused) = &self.fused_forward {
            return fused.run(arguments);
        }
        let exchange: Buffer<T> = self.device.alloc(2 * self.forward_exchange())?;
        self.forward_steps(arguments, exchange.ptr())
    }

    /// The arguments that every forward call has.
    fn weighted<T: Element>(&self, weights: &Weights<Cuda, T>) -> ForwardCall {
        let packed = weights.packed();
        ForwardCall {
            forward_clip: clip(self.problem.options.forward_clip),
            r: packed.forward.ptr(),
            b: packed.b.ptr(),
            ..ForwardCall::zeroed()
        }
    }

    /// Enqueues a launch per step.
    fn forward_steps(&self, call: ForwardCall, exchange: Address) -> Result<()> {
        let call = ForwardCall { exchange, ..call };
        self.forward.run(&call, self.forward_exchange(), call.sizes.time as usize)
    }
}
