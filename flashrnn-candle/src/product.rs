//! The input product `wx = W x` of a layer, as one differentiable operation whose gradients ignore
//! padding.

use std::borrow::Cow;
use std::sync::OnceLock;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cpu_backend::CpuDevice;
use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};
use flashrnn::Shapes;

use crate::host::{check_unchanged, cpu, fingerprint, gradient};

/// Multiplies every row of `x [.., I]` by `w [Gx·N·D, I]`, with a result of shape `[.., Gx, N, D]`.
///
/// The result has the type of x. If w has another one, it is rounded to that of x, and its gradient
/// is computed in its own.
pub(crate) struct Product {
    shape: Shape,
    /// `[.., 1]` of u8: 0 for rows of x that are padding. Absent if there are none.
    mask: Option<Tensor>,
    /// The fingerprints of x and w in the forward pass.
    fingerprints: OnceLock<[Option<u64>; 2]>,
}

impl Product {
    pub fn new(shape: impl Into<Shape>, mask: Option<Tensor>) -> Self {
        Self { shape: shape.into(), mask, fingerprints: OnceLock::new() }
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
/// padding. Returns `None` if there is no padding.
pub(crate) fn padding_mask(shapes: &Shapes, lengths: Option<&[i32]>) -> Result<Option<Tensor>> {
    let padded = |lengths: &&[i32]| lengths.iter().any(|&length| length as usize != shapes.time);
    let Some(lengths) = lengths.filter(padded) else { return Ok(None) };
    let mut mask = vec![0u8; shapes.tokens()];
    for (b, &length) in lengths.iter().enumerate() {
        (0..length as usize).for_each(|t| mask[shapes.token(b, t)] = 1);
    }
    let [outer, inner] = shapes.resets();
    Tensor::from_vec(mask, (outer, inner, 1), &Device::Cpu).map(Some)
}

/// A contiguous matrix.
struct Matrix<'a> {
    values: Cow<'a, CpuStorage>,
    layout: Layout,
}

impl<'a> Matrix<'a> {
    /// Views a tensor as a matrix, or copies it if it is not contiguous or not of type `dtype`.
    fn new(
        values: &'a CpuStorage,
        layout: &Layout,
        size: [usize; 2],
        dtype: DType,
    ) -> Result<Self> {
        let size = (size[0], size[1]);
        if values.dtype() == dtype && layout.is_contiguous() {
            let layout = Layout::contiguous_with_offset(size, layout.start_offset());
            return Ok(Self { values: Cow::Borrowed(values), layout });
        }
        let values = Cow::Owned(values.to_dtype(layout, dtype)?);
        Ok(Self { values, layout: Layout::contiguous(size) })
    }

    /// Returns this matrix with its axes exchanged.
    fn transposed(self) -> Result<Self> {
        Ok(Self { layout: self.layout.transpose(0, 1)?, ..self })
    }

    fn times(&self, other: &Self) -> Result<CpuStorage> {
        let ((m, k), (_, n)) = (self.layout.shape().dims2()?, other.layout.shape().dims2()?);
        self.values.matmul(&other.values, (1, m, n, k), &self.layout, &other.layout)
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "flashrnn input product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, input) = w_layout.shape().dims2()?;
        let tokens = x_layout.shape().elem_count() / input;
        // candle does not multiply matrices without rows.
        if tokens == 0 {
            return Ok((CpuDevice.zeros_impl(&self.shape, x.dtype())?, self.shape.clone()));
        }
        self.fingerprints.get_or_init(|| [fingerprint(x, x_layout), fingerprint(w, w_layout)]);
        let dtype = x.dtype();
        let x = Matrix::new(x, x_layout, [tokens, input], dtype)?;
        let w = Matrix::new(w, w_layout, [rows, input], dtype)?;
        Ok((x.times(&w.transposed()?)?, self.shape.clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _wx: &Tensor,
        d_wx: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, input) = w.dims2()?;
        let tokens = x.elem_count() / input;
        if tokens == 0 {
            let zeros = |t: &Tensor| gradient(CpuDevice.zeros_impl(t.shape(), t.dtype())?, t);
            let zeros = |t: &Tensor| t.track_op().then(|| zeros(t)).transpose();
            return Ok((zeros(x)?, zeros(w)?));
        }
        let d_wx = d_wx.contiguous()?;
        let (d_wx, d_wx_layout) = d_wx.storage_and_layout();
        let d_wx = |dtype| Matrix::new(cpu(&d_wx)?, d_wx_layout, [tokens, rows], dtype);
        let [x_before, w_before] = self.fingerprints.get().copied().unwrap_or_default();
        let d_x = x.track_op().then(|| {
            let (w, w_layout) = w.storage_and_layout();
            let w = cpu(&w)?;
            check_unchanged("the layer's W", w_before, w, w_layout)?;
            let w = Matrix::new(w, w_layout, [rows, input], x.dtype())?;
            gradient(d_wx(x.dtype())?.times(&w)?, x)
        });
        let d_w = w.track_op().then(|| {
            let x = {
                let (storage, layout) = x.storage_and_layout();
                check_unchanged("x", x_before, cpu(&storage)?, layout)?;
                self.without_padding(x)?
            };
            let (x, x_layout) = x.storage_and_layout();
            let x = Matrix::new(cpu(&x)?, x_layout, [tokens, input], w.dtype())?;
            gradient(d_wx(w.dtype())?.transposed()?.times(&x)?, w)
        });
        Ok((d_x.transpose()?, d_w.transpose()?))
    }
}
