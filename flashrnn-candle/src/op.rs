//! The candle operation behind [`Recurrence`](crate::Recurrence). It has three inputs and one
//! packed output, and keeps what its backward pass needs in the operation object.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Tensor, WithDType};
use flashrnn::any::AnyBuffer;
use flashrnn::{AnyBackend, Backend, Backward, Element, Plan, Save, Weights};

use crate::call::{Activations, Call, ForwardOutput};
use crate::host::{Number, check_unchanged, cpu, fingerprint, gradient, narrow, slice, widen};
use crate::staging::Staged;

/// One call of the operator. Its inputs are wx, r and b; with an initial state, the third holds b
/// and then s0 in one tensor of `T::Wide`.
pub(crate) struct Op<T: Number, W: Number> {
    call: Call<T, W>,
    /// Whether s0 follows b in the third input.
    initial: bool,
    /// Whether an input depends on a variable, so that a backward pass may follow.
    differentiable: bool,
    /// Set by the forward pass.
    context: OnceLock<Context<T>>,
}

/// What the forward pass of a call saves for its backward passes.
struct Context<T: Number> {
    weights: Weights<AnyBackend, T>,
    /// `[S, B, N, D]`, a copy, since stateful models overwrite s0 before the backward pass.
    s0: Option<AnyBuffer<T::Wide>>,
    activations: Activations<T>,
    /// The fingerprint of wx, if the backward pass reads it again.
    wx_fingerprint: Option<u64>,
}

/// The contents of the third input: b, and s0 in the backend's memory.
type BiasAndState<T, W> = (Vec<W>, Option<AnyBuffer<<T as Element>::Wide>>);

impl<T: Number, W: Number> Op<T, W> {
    pub fn new(call: Call<T, W>, initial: bool, differentiable: bool) -> Self {
        Self { call, initial, differentiable, context: OnceLock::new() }
    }

    /// Returns the number of elements of b.
    fn b_len(&self) -> usize {
        self.call.shapes().b().iter().product()
    }

    fn recomputes(&self) -> bool {
        self.call.plan.problem().options.save == Save::Recompute
    }

    /// Splits the third input into b and s0.
    fn split(&self, storage: &CpuStorage, layout: &Layout) -> Result<BiasAndState<T, W>> {
        if !self.initial {
            return Ok((slice::<W>(storage, layout)?.to_vec(), None));
        }
        let (b, s0) = slice::<T::Wide>(storage, layout)?.split_at(self.b_len());
        let b = b.iter().map(|&x| convert(x)).collect();
        Ok((b, Some(self.call.backend.upload(s0).map_err(Error::wrap)?)))
    }
}

/// Converts between `W` and `T::Wide`.
fn convert<P: Element, Q: Element>(x: P) -> Q {
    Q::from_f64(x.to_f64())
}

impl<T: Number, W: Number> CustomOp3 for Op<T, W> {
    fn name(&self) -> &'static str {
        "flashrnn"
    }

    /// Computes the flat tensor (h or states, last) in `T::Wide` from wx, r and (b, s0).
    fn cpu_fwd(
        &self,
        wx: &CpuStorage,
        wx_layout: &Layout,
        r: &CpuStorage,
        r_layout: &Layout,
        rest: &CpuStorage,
        rest_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let call = &self.call;
        let (b, s0) = self.split(rest, rest_layout)?;
        let weights = call.pack(slice(r, r_layout)?, &b)?;
        let ForwardOutput { head, mut last, activations } =
            call.forward(&weights, slice(wx, wx_layout)?, s0.as_ref(), self.differentiable)?;
        if let Some(activations) = activations {
            let wx_fingerprint = if self.recomputes() { fingerprint(wx, wx_layout) } else { None };
            if self.context.set(Context { weights, s0, activations, wx_fingerprint }).is_err() {
                return Err(Error::msg("flashrnn: one operation object ran forward twice"));
            }
        }
        // out: [S·B·T·N·D or B·T·N·D, then S·B·N·D]
        let mut out = widen(head);
        out.append(&mut last);
        let len = out.len();
        Ok((T::Wide::to_cpu_storage_owned(out), Shape::from(len)))
    }

    fn bwd(
        &self,
        wx: &Tensor,
        r: &Tensor,
        rest: &Tensor,
        _out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(Context { weights, s0, activations, wx_fingerprint }) = self.context.get() else {
            return Err(Error::msg("flashrnn: no forward pass saved anything for this backward"));
        };
        let call = &self.call;
        let d_out = d_out.contiguous()?;
        let (d_out_storage, d_out_layout) = d_out.storage_and_layout();
        let (d_head, d_last) =
            slice::<T::Wide>(cpu(&d_out_storage)?, d_out_layout)?.split_at(call.head_len());
        let d_head = narrow::<T>(d_head);
        let (d_head, d_last) = (call.stage(&d_head)?, call.stage(d_last)?);
        let d_head = Some(d_head.view());
        let (d_h, d_states) = if call.all_states { (None, d_head) } else { (d_head, None) };
        // With saved gates, the backward pass does not read wx.
        let (wx_storage, wx_layout) = wx.storage_and_layout();
        let wx_again = if self.recomputes() {
            let storage = cpu(&wx_storage)?;
            check_unchanged("wx", *wx_fingerprint, storage, wx_layout)?;
            Some(call.stage(slice(storage, wx_layout)?)?)
        } else {
            None
        };
        let masks = call.masks()?;
        let mut d_wx = call.alloc::<T>(wx.elem_count())?;
        let mut d_r = call.alloc::<W>(r.elem_count())?;
        let mut d_b = call.alloc::<W>(self.b_len())?;
        let mut d_s0 =
            self.initial.then(|| call.alloc(rest.elem_count() - self.b_len())).transpose()?;
        call.plan
            .backward(Backward {
                wx: wx_again.as_ref().map(Staged::view),
                s0: s0.as_ref().map(AnyBuffer::view),
                lengths: masks.lengths(),
                resets: masks.resets(),
                d_h,
                d_states,
                d_last: Some(d_last.view()),
                d_r: Some(d_r.view_mut()),
                d_b: Some(d_b.view_mut()),
                d_s0: d_s0.as_mut().map(AnyBuffer::view_mut),
                ..Backward::new(
                    weights,
                    activations.states.view(),
                    activations.saved.view(),
                    d_wx.view_mut(),
                )
            })
            .map_err(Error::wrap)?;
        // candle's gradient store would keep a gradient even for a tensor that depends on no
        // variable.
        let d_wx =
            wx.track_op().then(|| gradient(T::to_cpu_storage_owned(self.call.read(d_wx)?), wx));
        let d_r = r.track_op().then(|| gradient(W::to_cpu_storage_owned(self.call.read(d_r)?), r));
        let d_rest = rest.track_op().then(|| gradient(self.joined(d_b, d_s0)?, rest));
        Ok((d_wx.transpose()?, d_r.transpose()?, d_rest.transpose()?))
    }
}

impl<T: Number, W: Number> Op<T, W> {
    /// Makes the gradient of the third input.
    fn joined(&self, d_b: AnyBuffer<W>, d_s0: Option<AnyBuffer<T::Wide>>) -> Result<CpuStorage> {
        let d_b = self.call.read(d_b)?;
        let Some(d_s0) = d_s0 else { return Ok(W::to_cpu_storage_owned(d_b)) };
        let mut joined: Vec<T::Wide> = d_b.into_iter().map(convert).collect();
        joined.append(&mut self.call.read(d_s0)?);
        Ok(T::Wide::to_cpu_storage_owned(joined))
    }
}
