//! The backward pass: the gates again where they were not saved, the time loop, and the gradients
//! of the weights.

use flashrnn_core::{Backward, Element, Result, Save};

use crate::backend::Wgpu;
use crate::call::Params;
use crate::engine::Engine;
use crate::kernels::{Bound, Call, Kernel};
use crate::memory::View;
use crate::select;

/// Scratch memory of a backward pass.
#[derive(Clone, Copy)]
struct Regions<'a> {
    /// In the form of [`Params::lay_out_backward`].
    work: Bound<'a>,
    /// With [`Save::Recompute`] the gates of some steps, in f32.
    gates_again: Bound<'a>,
    /// Parts of d_r, then parts of d_b.
    partial: Bound<'a>,
}

/// A sum over tokens that gives one of the weights' gradients.
struct Sum<'a, W> {
    kernel: &'a Kernel,
    out: View<'a, W>,
    /// The elements of `out`.
    columns: usize,
    /// Of [`select::GRADIENT_ROUNDS`].
    round: [usize; 2],
    /// The workgroups of each part, or `None` where an invocation has one column of one part.
    groups_of_part: Option<usize>,
}

impl Engine {
    /// The regions of a backward pass's scratch memory, in bytes: `work`, the gates computed again,
    /// and partial sums.
    pub(crate) fn backward_regions(&self) -> [usize; 3] {
        let shapes = &self.shapes;
        let work = Params::default().lay_out_backward(shapes);
        let gates_again = match self.problem.options.save {
            Save::Gates => 0,
            Save::Recompute => self.gates_steps * shapes.gates * shapes.batch * shapes.units(),
        };
        let partial = |columns, round| select::parts(shapes.tokens(), columns, round).0 * columns;
        let [r, b] = self.weight_sizes();
        let [round_r, round_b] = select::GRADIENT_ROUNDS;
        // One element more where pairs are read.
        [work, gates_again + 1, partial(r, round_r).max(partial(b, round_b))].map(|words| 4 * words)
    }

    /// The elements of R and b.
    fn weight_sizes(&self) -> [usize; 2] {
        [self.shapes.r().iter().product(), self.shapes.b().iter().product()]
    }

    pub(crate) fn backward<T: Element, W: Element>(
        &self,
        mut call: Backward<'_, Wgpu, T, W>,
    ) -> Result<()> {
        let mut params = Params {
            has_lengths: call.lengths.is_some().into(),
            has_resets: call.resets.is_some().into(),
            has_s0: call.s0.is_some().into(),
            has_d_last: call.d_last.is_some().into(),
            accumulate: call.accumulate.into(),
            ..self.params()
        };
        params.lay_out_backward(&self.shapes);
        let sizes = self.backward_regions();
        let scratch = self.scratch(call.workspace.take(), &sizes)?;
        let [work, gates_again, partial] = scratch.regions(sizes);
        let regions = Regions { work, gates_again, partial };
        let mut commands = Call::new(&self.device);
        commands.copy_in("s0", call.s0, work, params.s0_at)?;
        commands.copy_in("d_last", call.d_last, work, params.d_last_at)?;
        commands.copy_in("lengths", call.lengths, work, params.lengths_at)?;
        commands.copy_in("resets", call.resets, work, params.resets_at)?;
        self.backward_time_loop(&mut commands, &mut params, &call, regions)?;
        if let Some(d_s0) = &call.d_s0 {
            commands.copy_out(work, params.d_s0_at, d_s0.0);
        }
        self.weight_gradients(&mut commands, &params, &call, regions)?;
        commands.submit();
        Ok(())
    }

    /// Computes d_wx and, in `work`, the gradients of the gates that take no external input and of
    /// s0.
    fn backward_time_loop<T: Element, W: Element>(
        &self,
        commands: &mut Call<'_>,
        params: &mut Params,
        call: &Backward<'_, Wgpu, T, W>,
        Regions { work, gates_again, .. }: Regions<'_>,
    ) -> Result<()> {
        let shapes = &self.shapes;
        let kernels = self.backward_kernels()?;
        let weights = Bound::whole(&call.weights.packed().buffer.buffer);
        let states = self.bind(Some(call.states), false, 0, &mut params.states_first);
        let wx = self.bind(call.wx, false, 1, &mut params.wx_first);
        let (d_states, count) = match (call.d_h, call.d_states) {
            (Some(d_h), _) => (Some(d_h), 1),
            (None, Some(d_states)) => (Some(d_states), shapes.states as u32),
            (None, None) => (None, 0),
        };
        params.d_states_count = count;
        let gates = match self.problem.options.save {
            Save::Gates => self.bind(Some(call.saved.gates), false, 2, &mut params.gates_first),
            Save::Recompute => gates_again,
        };
        let bound = [
            weights,
            states,
            gates,
            self.bind(Some(call.saved.wide), false, 3, &mut params.wide_first),
            self.bind(d_states, false, 4, &mut params.d_states_first),
            work,
            self.bind(Some(call.d_wx.0), true, 0, &mut params.d_wx_first),
        ];
        let steps = self.backward_steps(params)?;
        for part in select::from_the_last(shapes.time, self.gates_steps) {
            let params = Params {
                gates_step: part.start as u32,
                gates_steps: part.len() as u32,
                first_step: (shapes.time - part.end) as u32,
                ..*params
            };
            if let Some(kernel) = &kernels.gates_again {
                let bound = [weights, wx, states, work, gates_again];
                commands.run(kernel, &params, &bound, self.tiles(part.len() * shapes.batch));
            }
            // Step -1 gives d_s0.
            let before_first = usize::from(part.start == 0 && call.d_s0.is_some());
            self.run_steps(commands, &steps, params, &bound, part.len() + before_first);
        }
        Ok(())
    }

    /// Computes d_r and d_b, of those that are asked for, from d_wx and what the time loop left in
    /// `work`.
    fn weight_gradients<T: Element, W: Element>(
        &self,
        commands: &mut Call<'_>,
        params: &Params,
        call: &Backward<'_, Wgpu, T, W>,
        Regions { work, partial, .. }: Regions<'_>,
    ) -> Result<()> {
        let shapes = &self.shapes;
        let kernels = self.backward_kernels()?;
        let (weight_gradient, width) = self.weight_gradient(params)?;
        let tiles = shapes.head_dim.div_ceil(width);
        let [columns_r, columns_b] = self.weight_sizes();
        let [round_r, round_b] = select::GRADIENT_ROUNDS;
        let d_r = call.d_r.as_ref().map(|d_r| Sum {
            kernel: &weight_gradient,
            out: d_r.0,
            columns: columns_r,
            round: round_r,
            groups_of_part: Some(shapes.recurrent * shapes.heads * tiles * tiles),
        });
        let d_b = call.d_b.as_ref().map(|d_b| Sum {
            kernel: &kernels.bias_gradient,
            out: d_b.0,
            columns: columns_b,
            round: round_b,
            groups_of_part: None,
        });
        let mut first = 0;
        let states = self.bind(Some(call.states), false, 0, &mut first);
        let d_wx = self.bind(Some(call.d_wx.0), false, 1, &mut first);
        for Sum { kernel, out, columns, round, groups_of_part } in [d_r, d_b].into_iter().flatten()
        {
            let (parts, length) = select::parts(shapes.tokens(), columns, round);
            let mut params = Params {
                parts: parts as u32,
                part_tokens: length as u32,
                row_length: columns as u32,
                ..*params
            };
            let groups =
                groups_of_part.map_or((parts * columns).div_ceil(64), |groups| parts * groups);
            commands.run(kernel, &params, &[states, d_wx, work, partial], groups);
            let bound = [partial, self.bind(Some(out), true, 0, &mut params.out_first)];
            commands.run(&kernels.reduce, &params, &bound, columns.div_ceil(64));
        }
        Ok(())
    }
}
