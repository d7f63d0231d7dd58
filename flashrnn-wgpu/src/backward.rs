//! The backward pass: the gates again where they were not saved, the time loop, and the gradients of the weights.

use flashrnn_core::{Backward, Element, Len, Result};

use crate::call::{Layout, Params};
use crate::device::Wgpu;
use crate::engine::Engine;
use crate::kernel::{Bound, Call};
use crate::memory::View;
use crate::select;

impl Engine {
    pub(crate) fn backward<T: Element, W: Element>(&self, call: Backward<'_, Wgpu, T, W>) -> Result<()> {
        let shapes = &self.shapes;
        let (tokens, units) = (shapes.tokens(), shapes.units());
        let state: usize = shapes.state().iter().product();
        let mut layout = Layout::default();
        let mut params = Params {
            has_lengths: call.lengths.is_some().into(),
            has_resets: call.resets.is_some().into(),
            has_s0: call.s0.is_some().into(),
            has_d_last: call.d_last.is_some().into(),
            lengths_at: layout.add(shapes.batch),
            resets_at: layout.add(tokens.div_ceil(4)),
            s0_at: layout.add(state),
            d_last_at: layout.add(state),
            d_s0_at: layout.add(state),
            carried_at: layout.add(state),
            exchange_at: layout.add(2 * shapes.recurrent * shapes.batch * units),
            inner_at: layout.add(shapes.inner() * tokens * units),
            accumulate: call.accumulate.into(),
            ..self.params()
        };
        let work = self.pool.words(&self.device, layout.words)?;
        let mut commands = Call::new(&self.device);
        if let Some(s0) = call.s0 {
            commands.copy_in("s0", s0, &work, params.s0_at)?;
        }
        if let Some(d_last) = call.d_last {
            commands.copy_in("d_last", d_last, &work, params.d_last_at)?;
        }
        if let Some(lengths) = call.lengths {
            commands.copy_in("lengths", lengths, &work, params.lengths_at)?;
        }
        if let Some(resets) = call.resets {
            commands.copy_in("resets", resets, &work, params.resets_at)?;
        }

        let weights = Bound::whole(&call.weights.packed.buffer);
        let states = self.bind(Some(call.states), false, 0, &mut params.states_first);
        let wx = self.bind(call.wx.filter(|wx| wx.len() > 0), false, 1, &mut params.wx_first);
        let (d_states, count) = match (call.d_h, call.d_states) {
            (Some(d_h), _) => (Some(d_h), 1),
            (None, Some(d_states)) => (Some(d_states), shapes.states as u32),
            (None, None) => (None, 0),
        };
        params.d_states_count = count;
        let saved = &call.saved;
        let kernels = self.backward_kernels()?;
        let again = match &kernels.gates_again {
            None => None,
            Some(kernel) => {
                let step = shapes.gates * shapes.batch * units;
                Some((kernel, self.pool.words(&self.device, self.gates_steps * step)?))
            }
        };
        let gates = Bound::whole(again.as_ref().map_or(&saved.gates.buffer, |(_, gates)| gates));
        let wide = View::<f32>::of(&saved.wide.buffer, 0, saved.wide.len)?;
        let wide = self.bind(Some(wide).filter(|wide| wide.len() > 0), false, 2, &mut params.wide_first);
        let d_wx = Some(call.d_wx.0).filter(|d_wx| d_wx.len() > 0);
        let bound = [
            weights,
            states,
            gates,
            wide,
            self.bind(d_states, false, 3, &mut params.d_states_first),
            Bound::whole(&work),
            self.bind(d_wx, true, 0, &mut params.d_wx_first),
        ];
        let steps = self.backward_steps(&params)?;
        for part in select::from_the_last(shapes.time, self.gates_steps) {
            let params = Params {
                gates_step: part.start as u32,
                gates_steps: part.len() as u32,
                first_step: (shapes.time - part.end) as u32,
                ..params
            };
            if let Some((kernel, gates)) = &again {
                let bound = [weights, wx, states, Bound::whole(&work), Bound::whole(gates)];
                commands.run(kernel, &params, &bound, self.tiles(part.len() * shapes.batch));
            }
            // Step -1 gives d_s0.
            let before_first = usize::from(part.start == 0 && call.d_s0.is_some());
            self.run_steps(&mut commands, &steps, params, &bound, part.len() + before_first);
        }
        if let Some(d_s0) = call.d_s0 {
            commands.copy_out(&work, params.d_s0_at, d_s0.0);
        }

        let (weight_gradient, width) = self.weight_gradient(&params)?;
        let sums = [
            (&weight_gradient, call.d_r, shapes.r().iter().product::<usize>()),
            (&kernels.bias_gradient, call.d_b, shapes.b().iter().product::<usize>()),
        ];
        for (i, (kernel, out, columns)) in sums.into_iter().enumerate() {
            let Some(out) = out else { continue };
            let (parts, length) = select::parts(tokens, columns, select::GRADIENT_ROUNDS[i]);
            let params = Params {
                parts: parts as u32,
                part_tokens: length as u32,
                row_length: columns as u32,
                ..params
            };
            let partial = self.pool.words(&self.device, parts * columns)?;
            let mut first = 0;
            let d_wx = self.bind(d_wx, false, 4, &mut first);
            let bound = [states, d_wx, Bound::whole(&work), Bound::whole(&partial)];
            let groups = match i {
                0 => {
                    let tiles = shapes.head_dim.div_ceil(width);
                    parts * shapes.recurrent * shapes.heads * tiles * tiles
                }
                _ => (parts * columns).div_ceil(64),
            };
            commands.run(kernel, &params, &bound, groups);
            let mut params = params;
            let bound = [Bound::whole(&partial), self.bind(Some(out.0), true, 0, &mut params.out_first)];
            commands.run(&kernels.reduce, &params, &bound, columns.div_ceil(64));
        }
        commands.submit();
        Ok(())
    }
}
