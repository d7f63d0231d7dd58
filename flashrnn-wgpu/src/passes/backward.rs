//! The backward pass: recomputed gates, the time loop, and the gradients of the weights.

use flashrnn_core::{Backward, Element, Result, Save};

use crate::backend::Wgpu;
use crate::call::Params;
use crate::engine::Engine;
use crate::kernels::recorder::Recorder;
use crate::memory::binding::Binding;
use crate::programs::tensors::{BackwardTensors, RecomputeTensors};
use crate::select;

impl Engine {
    /// Returns the regions of a backward pass's scratch memory, in bytes: `work`, laid out by
    /// [`Params::lay_out_backward`]; the recomputed gates of some steps, in f32; and the partial
    /// sums of d_r, then of d_b.
    pub(crate) fn backward_regions(&self) -> [usize; 3] {
        let work = Params::default().lay_out_backward(&self.shapes);
        // One more gate, because gates are read in pairs.
        [work, self.recomputed_len() + 1, self.partial_len()].map(|words| 4 * words)
    }

    /// Enqueues a backward pass.
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
        let [work, recomputed, partial] = scratch.regions(sizes);
        let mut recorder = Recorder::new(&self.wgpu.kernels);
        recorder.copy_in("s0", call.s0, work, params.s0_at)?;
        recorder.copy_in("d_last", call.d_last, work, params.d_last_at)?;
        recorder.copy_in("lengths", call.lengths, work, params.lengths_at)?;
        recorder.copy_in("resets", call.resets, work, params.resets_at)?;
        self.backward_time_loop(&mut recorder, &mut params, &call, work, recomputed)?;
        if let Some(d_s0) = &call.d_s0 {
            recorder.copy_out(work, params.d_s0_at, d_s0.0);
        }
        self.weight_grads(&mut recorder, &params, &call, work, partial)?;
        recorder.submit();
        Ok(())
    }

    /// Records the time loop, from the last steps to the first. It computes d_wx and, in `work`,
    /// the gradients of the gates that take no external input and of s0.
    fn backward_time_loop<T: Element, W: Element>(
        &self,
        recorder: &mut Recorder<'_>,
        params: &mut Params,
        call: &Backward<'_, Wgpu, T, W>,
        work: Binding<'_>,
        recomputed: Binding<'_>,
    ) -> Result<()> {
        let tensors = self.bind_backward(params, call, work, recomputed);
        let recompute = RecomputeTensors {
            weights: tensors.weights,
            wx: self.bind(call.wx, false, 1, &mut params.wx_first),
            states: tensors.states,
            work,
            gates: recomputed,
        };
        let kernels = self.backward_kernels()?;
        let kernel = self.backward_kernel(params)?;
        for steps in select::ranges_from_last(self.shapes.time, self.steps_at_once) {
            let params = self.params_of_steps(params, &steps);
            if let Some(kernel) = &kernels.recompute {
                self.recompute_gates(recorder, kernel, &params, recompute);
            }
            // Step -1 computes d_s0.
            let before_first = usize::from(steps.start == 0 && call.d_s0.is_some());
            self.run_steps(recorder, &kernel, params, tensors, steps.len() + before_first);
        }
        Ok(())
    }

    /// Binds the tensors of the time loop and sets their offsets in `params`.
    fn bind_backward<'a, T: Element, W: Element>(
        &'a self,
        params: &mut Params,
        call: &'a Backward<'_, Wgpu, T, W>,
        work: Binding<'a>,
        recomputed: Binding<'a>,
    ) -> BackwardTensors<Binding<'a>> {
        let (d_states, count) = match (call.d_h, call.d_states) {
            (Some(d_h), _) => (Some(d_h), 1),
            (None, Some(d_states)) => (Some(d_states), self.shapes.states as u32),
            (None, None) => (None, 0),
        };
        params.d_states_count = count;
        BackwardTensors {
            weights: Binding::whole(&call.weights.packed().buffer.buffer),
            states: self.bind(Some(call.states), false, 0, &mut params.states_first),
            gates: match self.problem.options.save {
                Save::Gates => self.bind(Some(call.saved.gates), false, 2, &mut params.gates_first),
                Save::Recompute => recomputed,
            },
            wide: self.bind(Some(call.saved.wide), false, 3, &mut params.wide_first),
            d_states: self.bind(d_states, false, 4, &mut params.d_states_first),
            work,
            d_wx: self.bind(Some(call.d_wx.0), true, 0, &mut params.d_wx_first),
        }
    }
}
