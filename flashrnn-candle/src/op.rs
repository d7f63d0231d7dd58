//! The candle operation behind [`Rnn`](crate::Rnn): three packed inputs, one packed output, and what the backward
//! pass needs kept in the operation itself.

use std::borrow::Cow;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Device, Error, Layout, Result, Shape, Storage, Tensor, WithDType};
use flashrnn::{Backward, Element, Forward, Plan, Save, Saved, Weights};

use crate::Bridge;

/// An element type that both flashrnn and candle know, its wide type too.
pub(crate) trait Number: Element<Wide: WithDType> + WithDType {}
impl<T: Element<Wide: WithDType> + WithDType> Number for T {}

/// One call of the operator. `T` is the element of wx, `W` that of r and b.
pub(crate) struct Op<B: Bridge, T: Number, W: Number> {
    pub backend: B,
    pub plan: B::Plan<T, W>,
    /// `[B]`
    pub lengths: Option<Vec<i32>>,
    /// `[B, T]`, or `[T, B]`
    pub resets: Option<Vec<u8>>,
    /// The output starts with every state instead of h alone.
    pub all_states: bool,
    /// Something depends on a variable, so a backward pass may follow.
    pub differentiable: bool,
    /// Set by the forward pass.
    pub kept: OnceLock<Kept<B, T, W>>,
}

/// What the forward pass of one call leaves to its backward passes.
pub(crate) struct Kept<B: Bridge, T: Number, W: Number> {
    weights: Weights<B, T, W>,
    /// `[S, B, T, N, D]`
    states: B::Buffer<T>,
    saved: Saved<B, T>,
}

impl<B: Bridge, T: Number, W: Number> Op<B, T, W> {
    /// How many elements of the output come before `last`.
    pub fn head_len(&self) -> usize {
        let shapes = self.plan.shapes();
        let steps = shapes.tokens() * shapes.units();
        if self.all_states { shapes.states * steps } else { steps }
    }

    fn r_len(&self) -> usize {
        self.plan.shapes().r().iter().product()
    }

    /// Brings host data to the backend.
    fn input<'a, P: Element>(&self, data: &'a [P]) -> Result<B::Input<'a, P>> {
        self.backend.input(data).map_err(Error::wrap)
    }

    /// The lengths and resets there are, brought to the backend.
    #[allow(clippy::type_complexity)] // the type of the two, once
    fn masks(&self) -> Result<(Option<B::Input<'_, i32>>, Option<B::Input<'_, u8>>)> {
        let lengths = self.lengths.as_deref().map(|lengths| self.backend.input(lengths));
        let resets = self.resets.as_deref().map(|resets| self.backend.input(resets));
        Ok((lengths.transpose().map_err(Error::wrap)?, resets.transpose().map_err(Error::wrap)?))
    }
}

impl<B: Bridge, T: Number, W: Number> CustomOp3 for Op<B, T, W> {
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
        let (backend, shapes) = (&self.backend, self.plan.shapes());
        let (r, b) = slice::<W>(weights, weights_layout)?.split_at(self.r_len());
        let (r, b) = (self.input(r)?, self.input(b)?);
        let weights = self.plan.pack(backend.read(&r), backend.read(&b)).map_err(Error::wrap)?;
        let states_len = shapes.states().iter().product::<usize>();
        let head_len = self.head_len();
        let last_len = shapes.state().iter().product::<usize>();
        let mut saved = match self.differentiable {
            true => Some(self.plan.saved().map_err(Error::wrap)?),
            false => None,
        };
        // Every state where it is needed, else h alone, which lies where the states would begin.
        let every_state = self.differentiable || self.all_states;
        let mut states =
            backend.alloc::<T>(if every_state { states_len } else { head_len }).map_err(Error::wrap)?;
        let mut last = backend.alloc::<T::Wide>(last_len).map_err(Error::wrap)?;
        let wx = self.input(slice(wx, wx_layout)?)?;
        let s0 = self.input(slice(s0, s0_layout)?)?;
        let (lengths, resets) = self.masks()?;
        let written = Some(backend.view_mut(&mut states));
        let (written_h, written_states) = if every_state { (None, written) } else { (written, None) };
        self.plan
            .forward(Forward {
                s0: Some(backend.read(&s0)),
                lengths: lengths.as_ref().map(|lengths| backend.read(lengths)),
                resets: resets.as_ref().map(|resets| backend.read(resets)),
                h: written_h,
                states: written_states,
                last: Some(backend.view_mut(&mut last)),
                saved: saved.as_mut(),
                ..Forward::new(backend.read(&wx), &weights)
            })
            .map_err(Error::wrap)?;
        // out: [S·B·T·N·D or B·T·N·D, then S·B·N·D]
        let mut out = Vec::with_capacity(head_len + last_len);
        let head = backend.look(&states, head_len).map_err(Error::wrap)?;
        out.extend(head.iter().map(|&x| x.to_wide()));
        drop(head);
        out.append(&mut backend.take(last).map_err(Error::wrap)?);
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
        let (backend, shapes) = (&self.backend, self.plan.shapes());
        let d_out = d_out.contiguous()?;
        let (d_out_storage, d_out_layout) = d_out.storage_and_layout();
        let (wx_storage, wx_layout) = wx.storage_and_layout();
        let (s0_storage, s0_layout) = s0.storage_and_layout();
        let (d_head, d_last) =
            slice::<T::Wide>(cpu(&d_out_storage)?, d_out_layout)?.split_at(self.head_len());
        let d_head = narrow::<T>(d_head);
        let (d_head, d_last) = (self.input(&d_head)?, self.input(d_last)?);
        let (d_h, d_states) = match self.all_states {
            true => (None, Some(backend.read(&d_head))),
            false => (Some(backend.read(&d_head)), None),
        };
        // With the gates kept, nothing reads wx again.
        let wx_again = match self.plan.problem().options.save {
            Save::Gates => None,
            Save::Recompute => Some(self.input(slice(cpu(&wx_storage)?, wx_layout)?)?),
        };
        let s0_again = self.input(slice(cpu(&s0_storage)?, s0_layout)?)?;
        let (lengths, resets) = self.masks()?;
        let mut d_wx = backend.alloc::<T>(wx.elem_count()).map_err(Error::wrap)?;
        let mut d_r = backend.alloc::<W>(self.r_len()).map_err(Error::wrap)?;
        let mut d_b = backend.alloc::<W>(weights.elem_count() - self.r_len()).map_err(Error::wrap)?;
        let mut d_s0 = backend.alloc::<T::Wide>(s0.elem_count()).map_err(Error::wrap)?;
        self.plan
            .backward(Backward {
                wx: wx_again.as_ref().map(|wx| backend.read(wx)),
                s0: Some(backend.read(&s0_again)),
                lengths: lengths.as_ref().map(|lengths| backend.read(lengths)),
                resets: resets.as_ref().map(|resets| backend.read(resets)),
                d_h,
                d_states,
                d_last: Some(backend.read(&d_last)),
                d_r: Some(backend.view_mut(&mut d_r)),
                d_b: Some(backend.view_mut(&mut d_b)),
                d_s0: Some(backend.view_mut(&mut d_s0)),
                ..Backward::new(
                    &kept.weights,
                    backend.view(&kept.states),
                    &kept.saved,
                    backend.view_mut(&mut d_wx),
                )
            })
            .map_err(Error::wrap)?;
        // A gradient for a tensor that depends on no variable would only stay behind in candle's store.
        let d_wx = wx.track_op().then(|| tensor(backend.take(d_wx), shapes.wx()));
        let d_weights = weights.track_op().then(|| {
            let mut d_weights = backend.take(d_r).map_err(Error::wrap)?;
            d_weights.append(&mut backend.take(d_b).map_err(Error::wrap)?);
            tensor(Ok(d_weights), weights.dims())
        });
        let d_s0 = s0.track_op().then(|| tensor(backend.take(d_s0), s0.dims()));
        Ok((d_wx.transpose()?, d_weights.transpose()?, d_s0.transpose()?))
    }
}

fn tensor<P: WithDType>(values: flashrnn::Result<Vec<P>>, shape: impl AsRef<[usize]>) -> Result<Tensor> {
    Tensor::from_vec(values.map_err(Error::wrap)?, shape.as_ref(), &Device::Cpu)
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
