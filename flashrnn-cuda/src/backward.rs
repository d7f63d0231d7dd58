//! The backward pass: the gates again where none were saved, the time loop, then the gradients of R and b. What d_r needs beside
//! the time loop's results is prepared while that runs, and d_b is summed while d_r is multiplied.

use bytemuck::Zeroable;
use flashrnn_core::{Backward, Element, Result};

use crate::call::{BackwardCall, Gates};
use crate::device::Cuda;
use crate::memory::Buffer;
use crate::plan::{Engine, address, address_mut, clip, recompute};
use crate::tokens::Rows;

impl Engine {
    pub(crate) fn backward<T: Element, W: Element>(&self, call: Backward<'_, Cuda, T, W>) -> Result<()> {
        let shapes = &self.shapes;
        let (device, tokens, units) = (&self.device, shapes.tokens(), shapes.units());
        let rows = Rows {
            sizes: self.sizes,
            s0: address(&call.s0),
            lengths: address(&call.lengths),
            resets: address(&call.resets),
        };
        // [tokens, G - Gx, N, D]: the gradients of the gates that d_wx does not hold.
        let d_inner: Buffer<T> = device.alloc(tokens * shapes.inner() * units)?;
        let d_gates = Gates { external: call.d_wx.ptr(), inner: d_inner.ptr() };
        // [tokens, N, depth]
        let wanted = recompute(&self.problem) || call.d_r.is_some();
        let previous_h: Buffer<T> =
            device.alloc(if wanted { tokens * shapes.heads * self.depth } else { 0 })?;
        let stream = device.stream.cu_stream();
        let h_before = |stream| self.previous_h(stream, &rows, call.states.ptr(), previous_h.ptr());

        let (wide_states, wide_gates) = self.wide_at(call.saved.wide.ptr());
        let again: Option<Buffer<f32>> = match recompute(&self.problem) {
            false => None,
            true => {
                h_before(stream)?;
                // The gates lie where their gradients will: a step reads the ones before it writes the others.
                let wide =
                    if self.bytes < size_of::<f32>() { shapes.wide_gates.len() * tokens * units } else { 0 };
                let wide = device.alloc(wide)?;
                let (r, b) = (call.weights.forward.ptr(), call.weights.b.ptr());
                self.gates_again(&rows, [r, b, address(&call.wx), previous_h.ptr()], d_gates, wide.ptr())?;
                Some(wide)
            }
        };

        let (d_states, d_states_count) = match (&call.d_h, &call.d_states) {
            (Some(d_h), _) => (d_h.ptr(), 1),
            (None, Some(d_states)) => (d_states.ptr(), shapes.states as i32),
            (None, None) => (0, 0),
        };
        let d_s0 = address_mut(&call.d_s0);
        let arguments = BackwardCall {
            sizes: rows.sizes,
            d_states_count,
            cut_recurrent_grad: self.problem.options.cut_recurrent_grad.into(),
            forward_clip: clip(self.problem.options.forward_clip),
            recurrent_grad_clip: clip(self.problem.options.recurrent_grad_clip),
            r: call.weights.backward.ptr(),
            s0: rows.s0,
            lengths: rows.lengths,
            resets: rows.resets,
            states: call.states.ptr(),
            gates: if again.is_some() { d_gates } else { self.gates_at(call.saved.gates.ptr()) },
            wide_states,
            wide_gates: again.as_ref().map_or(wide_gates, Buffer::ptr),
            d_states,
            d_last: address(&call.d_last),
            d_gates,
            d_s0,
            ..BackwardCall::zeroed()
        };
        let time_loop = || match self.fused_backward.as_ref().filter(|fused| fused.can_run(&arguments)) {
            Some(fused) => fused.run(arguments),
            None => {
                // [2, B, N, Gr, depth] and [S, B, N, D]
                let half = shapes.batch * shapes.heads * shapes.recurrent * self.depth;
                let exchange: Buffer<T> = device.alloc(2 * half)?;
                let carried: Buffer<f32> = device.alloc(shapes.state().iter().product())?;
                let arguments =
                    BackwardCall { exchange: exchange.ptr(), carried: carried.ptr(), ..arguments };
                self.backward.run(&arguments, half, shapes.time + usize::from(d_s0 != 0))
            }
        };
        if wanted && again.is_none() {
            device.beside.run(stream, time_loop, h_before)?;
        } else {
            time_loop()?;
        }

        let d_r = || match &call.d_r {
            Some(d_r) => self.weight_gradient::<T>(d_gates, previous_h.ptr(), d_r.ptr(), call.accumulate),
            None => Ok(()),
        };
        let Some(d_b) = &call.d_b else { return d_r() };
        let partial = self.bias_partial()?;
        device.beside.run(stream, d_r, |stream| {
            self.bias_gradient(stream, d_gates, partial.ptr(), d_b.ptr(), call.accumulate)
        })
    }
}
