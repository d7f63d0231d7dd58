//! The forward pass: a call's arguments for the time loop.

use bytemuck::Zeroable;
use flashrnn_core::{Element, Forward, Result, Step};

use crate::call::{ForwardCall, Sizes};
use crate::device::Cuda;
use crate::memory::Buffer;
use crate::plan::{CudaWeights, Engine, address, address_mut, clip, recompute};

impl Engine {
    pub(crate) fn forward<T: Element, W: Element>(&self, call: Forward<'_, Cuda, T, W>) -> Result<()> {
        let Forward { wx, weights, s0, lengths, resets, h, states, last, saved } = call;
        let (gates, wide) = saved.map_or((0, 0), |saved| (saved.gates.ptr(), saved.wide.ptr()));
        let (wide_states, wide_gates) = if wide == 0 { (0, 0) } else { self.wide_at(wide) };
        let scratch: Buffer<f32>;
        let carried = match address_mut(&last) {
            0 => {
                scratch = self.device.alloc(self.shapes.state().iter().product())?;
                scratch.ptr()
            }
            last => last,
        };
        self.run(
            weights,
            ForwardCall {
                sizes: self.sizes,
                save_gates: (gates != 0 && !recompute(&self.problem)).into(),
                wx: wx.ptr(),
                s0: address(&s0),
                lengths: address(&lengths),
                resets: address(&resets),
                carried,
                h: address_mut(&h),
                states: address_mut(&states),
                gates: self.gates_at(gates),
                wide_states,
                wide_gates,
                ..ForwardCall::zeroed()
            },
        )
    }

    /// One step from the state before it, in place.
    pub(crate) fn step<T: Element, W: Element>(&self, call: Step<'_, Cuda, T, W>) -> Result<()> {
        let Step { wx, weights, state, h } = call;
        self.run(
            weights,
            ForwardCall {
                sizes: Sizes { time: 1, reverse: 0, ..self.sizes },
                wx: wx.ptr(),
                s0: state.ptr(),
                carried: state.ptr(),
                h: address_mut(&h),
                ..ForwardCall::zeroed()
            },
        )
    }

    /// Enqueues a forward call, with what every one has.
    fn run<T: Element>(&self, weights: &CudaWeights<T>, call: ForwardCall) -> Result<()> {
        let call = ForwardCall {
            forward_clip: clip(self.problem.options.forward_clip),
            r: weights.forward.ptr(),
            b: weights.b.ptr(),
            ..call
        };
        if let Some(fused) = self.fused_forward.as_ref().filter(|fused| fused.can_run(&call)) {
            return fused.run(call);
        }
        let half = self.shapes.batch * self.shapes.heads * self.depth;
        let exchange: Buffer<T> = self.device.alloc(2 * half)?;
        let call = ForwardCall { exchange: exchange.ptr(), ..call };
        self.forward.run(&call, half, call.sizes.time as usize)
    }
}
