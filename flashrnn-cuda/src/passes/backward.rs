//! The backward pass: the gates again where none were saved, the time loop, then the gradients of R
//! and b. What d_r needs beside the time loop's results is prepared while that runs, and d_b is
//! summed while d_r is multiplied.

use bytemuck::Zeroable;
use flashrnn_core::{Backward, Element, Result};

use crate::call::{BackwardCall, Gates};
use crate::device::Cuda;
use crate::engine::{Engine, address, address_mut, clip};
use crate::memory::scratch::BackwardNeeds;
use crate::passes::recompute::Rows;

impl Engine {
    pub(crate) fn backward<T: Element, W: Element>(
        &self,
        call: Backward<'_, Cuda, T, W>,
    ) -> Result<()> {
        let given = self.backward_call(&call);
        let fused = self.fused_backward.as_ref();
        let needs = BackwardNeeds {
            d_r: call.d_r.is_some(),
            d_b: call.d_b.is_some(),
            time_loop: fused.is_none(),
            misaligned: !call.d_wx.ptr().is_multiple_of(16),
        };
        let scratch =
            self.scratch(call.workspace.as_ref(), |bump| self.backward_scratch(bump, needs))?;
        let scratch = &scratch.buffers;
        let d_gates = Gates { inner: scratch.d_inner, ..given.d_gates };
        // Gates that are computed again lie where their gradients will: a step reads the ones
        // before it writes the others.
        let (gates, wide_gates) = match &scratch.gates_again {
            Some(_) => (d_gates, scratch.wide_gates),
            None => (given.gates, given.wide_gates),
        };
        let (exchange, carried) = (scratch.exchange, scratch.carried);
        let arguments = BackwardCall { gates, wide_gates, exchange, carried, d_gates, ..given };

        let BackwardCall { sizes, s0, lengths, resets, .. } = arguments;
        let rows = Rows { sizes, s0, lengths, resets };
        let stream = self.device.stream.cu_stream();
        let h_before =
            |stream| self.previous_h(stream, &rows, arguments.states, scratch.previous_h);
        if let Some(again) = &scratch.gates_again {
            h_before(stream)?;
            let packed = call.weights.packed();
            let inputs =
                [packed.forward.ptr(), packed.b.ptr(), address(&call.wx), scratch.previous_h];
            self.gates_again(&rows, inputs, d_gates, wide_gates, again)?;
        }
        let time_loop = || match fused {
            Some(fused) => fused.run(arguments),
            None => {
                let steps = self.shapes.time + usize::from(arguments.d_s0 != 0);
                self.backward.run(&arguments, self.backward_exchange(), steps)
            }
        };
        let beside = &self.device.beside;
        if needs.d_r && scratch.gates_again.is_none() {
            beside.run(stream, time_loop, h_before)?;
        } else {
            time_loop()?;
        }

        let d_r = || match (&call.d_r, &scratch.d_r) {
            (Some(d_r), Some(scratch_of_d_r)) => {
                let h = scratch.previous_h;
                self.weight_gradient(d_gates, h, d_r.ptr(), call.accumulate, scratch_of_d_r)
            }
            _ => Ok(()),
        };
        let Some(d_b) = &call.d_b else { return d_r() };
        beside.run(stream, d_r, |stream| {
            self.bias_gradient(stream, d_gates, scratch.bias, d_b.ptr(), call.accumulate)
        })
    }

    /// The arguments of the time loop that a call gives.
    fn backward_call<T: Element, W: Element>(
        &self,
        call: &Backward<'_, Cuda, T, W>,
    ) -> BackwardCall {
        let options = &self.problem.options;
        let (wide_states, wide_gates) = self.wide_at(call.saved.wide.ptr());
        let (d_states, d_states_count) = match (&call.d_h, &call.d_states) {
            (Some(d_h), _) => (d_h.ptr(), 1),
            (None, Some(d_states)) => (d_states.ptr(), self.shapes.states as i32),
            (None, None) => (0, 0),
        };
        BackwardCall {
            sizes: self.sizes,
            d_states_count,
            cut_recurrent_grad: options.cut_recurrent_grad.into(),
            forward_clip: clip(options.forward_clip),
            recurrent_grad_clip: clip(options.recurrent_grad_clip),
            r: call.weights.packed().backward.ptr(),
            s0: address(&call.s0),
            lengths: address(&call.lengths),
            resets: address(&call.resets),
            states: call.states.ptr(),
            gates: self.gates_at(call.saved.gates.ptr()),
            wide_states,
            wide_gates,
            d_states,
            d_last: address(&call.d_last),
            d_gates: Gates { external: call.d_wx.ptr(), inner: 0 },
            d_s0: address_mut(&call.d_s0),
            ..BackwardCall::zeroed()
        }
    }
}
