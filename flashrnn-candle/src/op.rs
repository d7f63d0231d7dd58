//! The candle operation behind [`Rnn`](crate::Rnn): three packed inputs, one packed output, and what the backward
//! pass needs kept in the operation itself.

use std::borrow::Cow;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Device, Error, Layout, Result, Shape, Storage, Tensor, WithDType};
use flashrnn::{Backend, Backward, Cpu, Element, Forward, Plan, Saved, Weights};

/// An element type that both flashrnn and candle know, its wide type too.
pub(crate) trait Number: Element<Wide: WithDType> + WithDType {}
impl<T: Element<Wide: WithDType> + WithDType> Number for T {}

/// One call of the operator. `T` is the element of wx, `W` that of r and b.
pub(crate) struct Op<T: Number, W: Number> {
    pub plan: <Cpu as Backend>::Plan<T, W>,
    /// `[B]`
    pub lengths: Option<Vec<i32>>,
    /// `[B, T]`, or `[T, B]`
    pub resets: Option<Vec<u8>>,
    /// The output starts with every state instead of h alone.
    pub all_states: bool,
    /// Something depends on a variable, so a backward pass may follow.
    pub differentiable: bool,
    /// Set by the forward pass.
    pub kept: OnceLock<Kept<T, W>>,
}

/// What the forward pass of one call leaves to its backward passes.
pub(crate) struct Kept<T: Number, W: Number> {
    weights: Weights<Cpu, T, W>,
    /// `[S, B, T, N, D]`
    states: Vec<T>,
    saved: Saved<Cpu, T>,
}

impl<T: Number, W: Number> Op<T, W> {
    /// How many elements of the output come before `last`.
    pub fn head_len(&self) -> usize {
        let shapes = self.plan.shapes();
        let steps = shapes.tokens() * shapes.units();
        if self.all_states { shapes.states * steps } else { steps }
    }

    fn r_len(&self) -> usize {
        self.plan.shapes().r().iter().product()
    }
}

impl<T: Number, W: Number> CustomOp3 for Op<T, W> {
    fn name(&self) -> &'static str {
        "flashrnn"
    }

    /// From wx, (r, b) and s0 the flat tensor (h or states, last), in `T::Wide`.
    fn cpu_fwd(
        &self,
        wx: &CpuStorage,
        wx_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
        s0: &CpuStorage,
        s0_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shapes = self.plan.shapes();
        let (r, b) = slice::<W>(weights, weights_layout)?.split_at(self.r_len());
        let weights = self.plan.pack(r, b).map_err(Error::wrap)?;
        let states_len = shapes.states().iter().product::<usize>();
        let head_len = self.head_len();
        let last_len = shapes.state().iter().product::<usize>();
        let mut saved = match self.differentiable {
            true => Some(self.plan.saved().map_err(Error::wrap)?),
            false => None,
        };
        // Every state where it is needed, else h alone, which lies where the states would begin.
        let every_state = self.differentiable || self.all_states;
        let mut states = vec![T::default(); if every_state { states_len } else { head_len }];
        let mut last = vec![<T::Wide as Default>::default(); last_len];
        let call = Forward {
            s0: Some(slice(s0, s0_layout)?),
            lengths: self.lengths.as_deref(),
            resets: self.resets.as_deref(),
            last: Some(&mut last[..]),
            saved: saved.as_mut(),
            ..Forward::new(slice(wx, wx_layout)?, &weights)
        };
        let call = match every_state {
            true => Forward { states: Some(&mut states[..]), ..call },
            false => Forward { h: Some(&mut states[..]), ..call },
        };
        self.plan.forward(call).map_err(Error::wrap)?;
        // out: [S·B·T·N·D or B·T·N·D, then S·B·N·D]
        let mut out = Vec::with_capacity(head_len + last_len);
        out.extend(states[..head_len].iter().map(|&x| x.to_wide()));
        out.append(&mut last);
        if let Some(saved) = saved
            && self.kept.set(Kept { weights, states, saved }).is_err()
        {
            return Err(Error::msg("flashrnn: one operation object was run forward twice"));
        }
        let len = out.len();
        Ok((T::Wide::to_cpu_storage_owned(out), Shape::from(len)))
    }

    fn bwd(
        &self,
        wx: &Tensor,
        weights: &Tensor,
        s0: &Tensor,
        _out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.get() else {
            return Err(Error::msg("flashrnn: backward without a forward pass that kept its states"));
        };
        let shapes = self.plan.shapes();
        let d_out = d_out.contiguous()?;
        let (d_out_storage, d_out_layout) = d_out.storage_and_layout();
        let (wx_storage, wx_layout) = wx.storage_and_layout();
        let (s0_storage, s0_layout) = s0.storage_and_layout();
        let (d_head, d_last) =
            slice::<T::Wide>(cpu(&d_out_storage)?, d_out_layout)?.split_at(self.head_len());
        let d_head = narrow::<T>(d_head);
        let (d_h, d_states) = match self.all_states {
            true => (None, Some(d_head.as_ref())),
            false => (Some(d_head.as_ref()), None),
        };
        let mut d_wx = vec![T::default(); wx.elem_count()];
        let mut d_weights = vec![W::default(); weights.elem_count()];
        let (d_r, d_b) = d_weights.split_at_mut(self.r_len());
        let mut d_s0 = vec![<T::Wide as Default>::default(); s0.elem_count()];
        self.plan
            .backward(Backward {
                wx: Some(slice(cpu(&wx_storage)?, wx_layout)?),
                s0: Some(slice(cpu(&s0_storage)?, s0_layout)?),
                lengths: self.lengths.as_deref(),
                resets: self.resets.as_deref(),
                d_h,
                d_states,
                d_last: Some(d_last),
                d_r: Some(d_r),
                d_b: Some(d_b),
                d_s0: Some(&mut d_s0[..]),
                ..Backward::new(&kept.weights, &kept.states[..], &kept.saved, &mut d_wx[..])
            })
            .map_err(Error::wrap)?;
        // A gradient for a tensor that depends on no variable would only stay behind in candle's store.
        let d_wx = wx.track_op().then(|| Tensor::from_vec(d_wx, shapes.wx().as_slice(), &Device::Cpu));
        let d_weights =
            weights.track_op().then(|| Tensor::from_vec(d_weights, weights.shape(), &Device::Cpu));
        let d_s0 = s0.track_op().then(|| Tensor::from_vec(d_s0, s0.shape(), &Device::Cpu));
        Ok((d_wx.transpose()?, d_weights.transpose()?, d_s0.transpose()?))
    }
}

/// The elements of a contiguous tensor.
fn slice<'a, P: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [P]> {
    let all = storage.as_slice::<P>()?;
    let part = layout.contiguous_offsets().and_then(|(start, end)| all.get(start..end));
    part.ok_or_else(|| Error::msg("flashrnn: a packed tensor is not contiguous"))
}

fn cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => Err(Error::msg("flashrnn: a gradient left the CPU")),
    }
}

/// Rounds to `T`; no copy where `T` is wide itself.
fn narrow<T: Number>(wide: &[T::Wide]) -> Cow<'_, [T]> {
    if <T as Element>::DTYPE == <T::Wide as Element>::DTYPE {
        Cow::Borrowed(bytemuck::cast_slice(wide))
    } else {
        Cow::Owned(wide.iter().map(|&x| T::from_wide(x)).collect())
    }
}
