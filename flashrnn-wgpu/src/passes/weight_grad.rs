//! The gradients of R and b: sums over tokens in parts, then the sum of the parts.

use flashrnn_core::{Backward, Element, Result};

use crate::backend::Wgpu;
use crate::call::Params;
use crate::engine::Engine;
use crate::kernels::Kernel;
use crate::kernels::recorder::Recorder;
use crate::memory::View;
use crate::memory::binding::Binding;
use crate::programs::tensors::{GradTensors, ReduceTensors};
use crate::select::{self, BIAS_GRAD, Round, WEIGHT_GRAD};

/// A sum over tokens.
struct Sum<'a, W> {
    kernel: &'a Kernel,
    out: View<'a, W>,
    /// Number of elements of `out`.
    columns: usize,
    round: Round,
    /// Workgroups of a part, or `None` if each invocation computes one column of one part.
    groups_per_part: Option<usize>,
}

impl Engine {
    /// Returns the number of partial sums of the larger gradient.
    pub(super) fn partial_len(&self) -> usize {
        let partial =
            |columns, round| select::parts(self.shapes.tokens(), columns, round).0 * columns;
        let [r, b] = self.weight_lens();
        partial(r, WEIGHT_GRAD).max(partial(b, BIAS_GRAD))
    }

    /// Returns the number of elements of R and of b.
    fn weight_lens(&self) -> [usize; 2] {
        [self.shapes.r().iter().product(), self.shapes.b().iter().product()]
    }

    /// Records the computation of d_r and d_b, if the call asks for them, from d_wx and the
    /// gradients that the time loop left in `work`.
    pub(super) fn weight_grads<T: Element, W: Element>(
        &self,
        recorder: &mut Recorder<'_>,
        params: &Params,
        call: &Backward<'_, Wgpu, T, W>,
        work: Binding<'_>,
        partial: Binding<'_>,
    ) -> Result<()> {
        let shapes = &self.shapes;
        let kernels = self.backward_kernels()?;
        let (weight_grad, width) = self.weight_grad_kernel(params)?;
        let tiles = shapes.head_dim.div_ceil(width);
        let [r_len, b_len] = self.weight_lens();
        let d_r = call.d_r.as_ref().map(|d_r| Sum {
            kernel: &weight_grad,
            out: d_r.0,
            columns: r_len,
            round: WEIGHT_GRAD,
            groups_per_part: Some(shapes.recurrent * shapes.heads * tiles * tiles),
        });
        let d_b = call.d_b.as_ref().map(|d_b| Sum {
            kernel: &kernels.bias_grad,
            out: d_b.0,
            columns: b_len,
            round: BIAS_GRAD,
            groups_per_part: None,
        });
        // `params` has these offsets already.
        let mut first = 0;
        let states = self.bind(Some(call.states), false, 0, &mut first);
        let d_wx = self.bind(Some(call.d_wx.0), false, 1, &mut first);
        let tensors = GradTensors { states, d_wx, work, partial };
        for sum in [d_r, d_b].into_iter().flatten() {
            self.sum_over_tokens(recorder, params, &kernels.reduce, tensors, sum);
        }
        Ok(())
    }

    fn sum_over_tokens<W: Element>(
        &self,
        recorder: &mut Recorder<'_>,
        params: &Params,
        reduce: &Kernel,
        tensors: GradTensors<Binding<'_>>,
        sum: Sum<'_, W>,
    ) {
        let Sum { kernel, out, columns, round, groups_per_part } = sum;
        let (parts, length) = select::parts(self.shapes.tokens(), columns, round);
        let mut params = Params {
            parts: parts as u32,
            part_tokens: length as u32,
            row_length: columns as u32,
            ..*params
        };
        let groups =
            groups_per_part.map_or((parts * columns).div_ceil(64), |groups| parts * groups);
        recorder.run(kernel, &params, tensors, groups);
        let out = self.bind(Some(out), true, 0, &mut params.out_first);
        let tensors = ReduceTensors { partial: tensors.partial, out };
        recorder.run(reduce, &params, tensors, columns.div_ceil(64));
    }
}
