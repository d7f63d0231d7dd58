//! The input product `wx = W x` of a layer, whose gradients ignore padding.

use candle_core::{Device, Result, Tensor};
use flashrnn::{Layout, Shapes};

use crate::graph::gradient;
use crate::storage::{check_unchanged, fingerprint, matmul, plain, zeros_like};

/// Multiplies every row of `x [.., I]` by `w [Gx·N·D, I]`, with a result of shape `[.., Gx, N, D]`.
///
/// The result has the type of x. If w has another one, it is rounded to that of x, and its gradient
/// is computed in its own.
pub(crate) struct Product {
    /// `[.., 1]` of u8: 0 for rows of x that are padding. Absent if there are none.
    mask: Option<Tensor>,
    /// The fingerprints of x and w in the forward pass.
    fingerprints: [Option<u64>; 2],
}

impl Product {
    /// Computes the product of contiguous tensors, in `shape` and not connected to any variable.
    pub fn forward(
        x: &Tensor,
        w: &Tensor,
        shape: &[usize],
        mask: Option<Tensor>,
    ) -> Result<(Tensor, Self)> {
        let product = Self { mask, fingerprints: [fingerprint(x), fingerprint(w)] };
        let (rows, input) = w.dims2()?;
        let tokens = x.elem_count() / input;
        // candle does not multiply matrices without rows.
        if tokens == 0 {
            let wx = Tensor::zeros(shape, x.dtype(), x.device())?;
            return Ok((wx, product));
        }
        let w = w.detach().to_dtype(x.dtype())?;
        let wx = matmul(&x.detach().reshape((tokens, input))?, &w.t()?)?;
        debug_assert_eq!(shape.iter().product::<usize>(), tokens * rows);
        Ok((plain(wx, shape), product))
    }

    /// Computes the gradients of x and w, each if it depends on a variable, from `d_wx`, which is
    /// contiguous.
    pub fn backward(&self, x: &Tensor, w: &Tensor, d_wx: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let (rows, input) = w.dims2()?;
        let tokens = x.elem_count() / input;
        if tokens == 0 {
            let zeros = |t: &Tensor| gradient(zeros_like(t)?, t);
            let zeros = |t: &Tensor| t.track_op().then(|| zeros(t)).transpose();
            return Ok([zeros(x)?, zeros(w)?]);
        }
        let d_wx = d_wx.reshape((tokens, rows))?;
        let [x_before, w_before] = self.fingerprints;
        let d_x = x.track_op().then(|| {
            check_unchanged("the layer's W", w_before, w)?;
            let w = w.detach().to_dtype(x.dtype())?;
            gradient(matmul(&d_wx, &w)?, x)
        });
        let d_w = w.track_op().then(|| {
            check_unchanged("x", x_before, x)?;
            let x = self.without_padding(x)?.reshape((tokens, input))?;
            let (d_wx, x) = (d_wx.to_dtype(w.dtype())?, x.to_dtype(w.dtype())?);
            gradient(matmul(&d_wx.t()?, &x)?, w)
        });
        Ok([d_x.transpose()?, d_w.transpose()?])
    }

    /// Returns x with zeros in place of padding. The zero gradient there would not suffice, since 0
    /// times infinity or NaN is NaN.
    fn without_padding(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.detach();
        match &self.mask {
            None => Ok(x),
            Some(mask) => mask.broadcast_as(x.shape())?.where_cond(&x, &x.zeros_like()?),
        }
    }
}

/// Makes a mask `[B, T, 1]` (or `[T, B, 1]`) that is 1 within each row's length and 0 in the
/// padding, from lengths of U32. Returns `None` if it knows without asking a GPU that there is no
/// padding.
pub(crate) fn padding_mask(shapes: &Shapes, lengths: Option<&Tensor>) -> Result<Option<Tensor>> {
    let Some(lengths) = lengths else { return Ok(None) };
    let full = |lengths: Vec<u32>| lengths.iter().all(|&length| length as usize == shapes.time);
    if matches!(lengths.device(), Device::Cpu) && full(lengths.to_vec1()?) {
        return Ok(None);
    }
    let steps = Tensor::arange(0, shapes.time as u32, lengths.device())?;
    let mask = match shapes.layout {
        Layout::BatchMajor => steps.unsqueeze(0)?.broadcast_lt(&lengths.unsqueeze(1)?)?,
        Layout::TimeMajor => steps.unsqueeze(1)?.broadcast_lt(&lengths.unsqueeze(0)?)?,
    };
    mask.unsqueeze(2).map(Some)
}
