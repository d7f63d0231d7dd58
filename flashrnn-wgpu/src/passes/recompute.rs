//! Recomputes the gates of some steps before their backward pass.

use std::ops::Range;

use crate::call::Params;
use crate::engine::Engine;
use crate::kernels::Kernel;
use crate::kernels::recorder::Recorder;
use crate::memory::binding::Binding;
use crate::programs::tensors::RecomputeTensors;

impl Engine {
    /// Returns the number of recomputed gates that are kept at a time.
    pub(super) fn recomputed_len(&self) -> usize {
        match self.programs.recompute {
            true => {
                self.steps_at_once * self.shapes.gates * self.shapes.batch * self.shapes.units()
            }
            false => 0,
        }
    }

    /// Returns the arguments of the backward pass's kernels for `steps`.
    pub(super) fn params_of_steps(&self, params: &Params, steps: &Range<usize>) -> Params {
        Params {
            gates_step: steps.start as u32,
            gates_steps: steps.len() as u32,
            first_step: (self.shapes.time - steps.end) as u32,
            ..*params
        }
    }

    /// Records the recomputation of the gates of `params.gates_steps` steps.
    pub(super) fn recompute_gates(
        &self,
        recorder: &mut Recorder<'_>,
        kernel: &Kernel,
        params: &Params,
        tensors: RecomputeTensors<Binding<'_>>,
    ) {
        let rows = params.gates_steps as usize * self.shapes.batch;
        let groups = self.shapes.head_dim.div_ceil(16) * self.shapes.heads * rows.div_ceil(16);
        recorder.run(kernel, params, tensors, groups);
    }
}
