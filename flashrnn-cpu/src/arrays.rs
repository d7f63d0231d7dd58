//! ndarray at the edges: views in, arrays out, for whoever does not want to keep buffers.

use flashrnn_core::{
    Backend, Backward, Element, Error, Forward, Plan, Result, Saved, Shapes, Weights,
};
use ndarray::{
    Array, Array3, Array4, Array5, ArrayView, ArrayView1, ArrayView2, ArrayView3, ArrayView4,
    ArrayView5, CowArray, Dimension, ShapeBuilder,
};

use crate::{Cpu, CpuPlan};

/// What the forward pass reads, besides the weights. Any strides will do; what is not contiguous is
/// copied. In time-major problems the first two axes of `wx` and `resets` change places.
#[derive(Clone, Debug)]
pub struct Inputs<'a, T: Element> {
    /// `[B, T, Gx, N, D]`
    pub wx: ArrayView5<'a, T>,
    /// `[S, B, N, D]`; zeros if absent.
    pub s0: Option<ArrayView4<'a, T::Wide>>,
    /// `[B]`, 0 to T; T if absent.
    pub lengths: Option<ArrayView1<'a, i32>>,
    /// `[B, T]`; where not 0, the state is zeroed before the step.
    pub resets: Option<ArrayView2<'a, u8>>,
}

impl<'a, T: Element> Inputs<'a, T> {
    /// Makes inputs with no optional tensor.
    #[must_use]
    pub fn new(wx: ArrayView5<'a, T>) -> Self {
        Self { wx, s0: None, lengths: None, resets: None }
    }
}

/// What the forward pass returns.
#[derive(Debug)]
pub struct Outputs<T: Element> {
    /// `[S, B, T, N, D]` (time-major: `[S, T, B, N, D]`); the first is h.
    pub states: Array5<T>,
    /// `[S, B, N, D]`
    pub last: Array4<T::Wide>,
    /// What the backward pass needs besides.
    saved: Saved<Cpu, T>,
}

/// The gradients of the outputs; an absent one is zero.
#[derive(Debug)]
pub struct OutputGradients<'a, T: Element> {
    /// `[S, B, T, N, D]` (time-major: `[S, T, B, N, D]`)
    pub d_states: Option<ArrayView5<'a, T>>,
    /// `[S, B, N, D]`
    pub d_last: Option<ArrayView4<'a, T::Wide>>,
}

/// The gradients of the inputs and the weights, in their shapes.
#[derive(Debug)]
pub struct Gradients<T: Element, W: Element> {
    /// `[B, T, Gx, N, D]` (time-major: `[T, B, Gx, N, D]`)
    pub d_wx: Array5<T>,
    /// `[Gr, N, D_out, D_in]`
    pub d_r: Array4<W>,
    /// `[G, N, D]`
    pub d_b: Array3<W>,
    /// `[S, B, N, D]`
    pub d_s0: Array4<T::Wide>,
}

/// A view in standard order, if it has the dimensions `want`.
fn standard<'a, P: Clone, D: Dimension>(
    tensor: &'static str,
    view: &'a ArrayView<'_, P, D>,
    want: &[usize],
) -> Result<CowArray<'a, P, D>> {
    if view.shape() != want {
        return Err(Error::Shape { tensor, got: view.shape().to_vec(), want: want.to_vec() });
    }
    Ok(view.as_standard_layout())
}

/// [`standard`] for a tensor that may be absent.
fn optional<'a, P: Clone, D: Dimension>(
    tensor: &'static str,
    view: &'a Option<ArrayView<'_, P, D>>,
    want: &[usize],
) -> Result<Option<CowArray<'a, P, D>>> {
    view.as_ref().map(|view| standard(tensor, view, want)).transpose()
}

/// The elements of an array in standard order.
fn slice<'a, P: Clone, D: Dimension>(array: &'a CowArray<'_, P, D>) -> &'a [P] {
    array.as_slice().unwrap_or(&[])
}

/// A zeroed array, or the error that there is no memory for it.
fn zeros<P: Element, D: Dimension>(
    shape: impl ShapeBuilder<Dim = D>,
    cpu: &Cpu,
    len: usize,
) -> Result<Array<P, D>> {
    let buffer = cpu.alloc(len)?;
    Array::from_shape_vec(shape, buffer)
        .map_err(|e| Error::device_because("laying out an array", e))
}

/// [`zeros`] of the dimensions `shape`.
macro_rules! zeros {
    ($cpu:expr, $shape:expr) => {{
        let shape = $shape;
        zeros(shape, $cpu, shape.iter().product())
    }};
}

impl<T: Element, W: Element> CpuPlan<T, W> {
    /// [`Plan::pack`] from arrays: `r [Gr, N, D_out, D_in]`, `b [G, N, D]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::OutOfMemory`]
    pub fn pack_arrays(
        &self,
        r: ArrayView4<'_, W>,
        b: ArrayView3<'_, W>,
    ) -> Result<Weights<Cpu, T>> {
        let shapes = self.shapes();
        let (r, b) = (standard("r", &r, &shapes.r())?, standard("b", &b, &shapes.b())?);
        self.pack(slice(&r), slice(&b))
    }

    /// [`Plan::forward`] from arrays, with all that a backward pass needs.
    ///
    /// # Errors
    /// As [`Plan::forward`].
    pub fn forward_arrays(
        &self,
        weights: &Weights<Cpu, T>,
        x: &Inputs<'_, T>,
    ) -> Result<Outputs<T>> {
        let x = Standard::new(self.shapes(), x)?;
        let mut states: Array5<T> = zeros!(self.backend(), self.shapes().states())?;
        let mut last: Array4<T::Wide> = zeros!(self.backend(), self.shapes().state())?;
        let mut saved = self.saved()?;
        self.forward(Forward {
            s0: x.s0.as_ref().map(slice),
            lengths: x.lengths.as_ref().map(slice),
            resets: x.resets.as_ref().map(slice),
            states: states.as_slice_mut(),
            last: last.as_slice_mut(),
            saved: Some(saved.view_mut()),
            ..Forward::new(weights, slice(&x.wx))
        })?;
        Ok(Outputs { states, last, saved })
    }

    /// [`Plan::backward`] from arrays: the same `x` as in the forward pass, and what that returned.
    ///
    /// # Errors
    /// As [`Plan::backward`].
    pub fn backward_arrays(
        &self,
        weights: &Weights<Cpu, T>,
        x: &Inputs<'_, T>,
        outputs: &Outputs<T>,
        d: &OutputGradients<'_, T>,
    ) -> Result<Gradients<T, W>> {
        let shapes = self.shapes();
        let x = Standard::new(shapes, x)?;
        let states = outputs.states.view();
        let states = standard("states", &states, &shapes.states())?;
        let d_states = optional("d_states", &d.d_states, &shapes.states())?;
        let d_last = optional("d_last", &d.d_last, &shapes.state())?;
        let mut d_wx: Array5<T> = zeros!(self.backend(), shapes.wx())?;
        let mut d_r: Array4<W> = zeros!(self.backend(), shapes.r())?;
        let mut d_b: Array3<W> = zeros!(self.backend(), shapes.b())?;
        let mut d_s0: Array4<T::Wide> = zeros!(self.backend(), shapes.state())?;
        self.backward(Backward {
            wx: Some(slice(&x.wx)),
            s0: x.s0.as_ref().map(slice),
            lengths: x.lengths.as_ref().map(slice),
            resets: x.resets.as_ref().map(slice),
            d_states: d_states.as_ref().map(slice),
            d_last: d_last.as_ref().map(slice),
            d_r: d_r.as_slice_mut(),
            d_b: d_b.as_slice_mut(),
            d_s0: d_s0.as_slice_mut(),
            ..Backward::new(
                weights,
                slice(&states),
                outputs.saved.view(),
                d_wx.as_slice_mut().unwrap_or(&mut []),
            )
        })?;
        Ok(Gradients { d_wx, d_r, d_b, d_s0 })
    }
}

/// [`Inputs`] in standard order, of the right dimensions.
struct Standard<'a, T: Element> {
    wx: CowArray<'a, T, ndarray::Ix5>,
    s0: Option<CowArray<'a, T::Wide, ndarray::Ix4>>,
    lengths: Option<CowArray<'a, i32, ndarray::Ix1>>,
    resets: Option<CowArray<'a, u8, ndarray::Ix2>>,
}

impl<'a, T: Element> Standard<'a, T> {
    fn new(shapes: &Shapes, x: &'a Inputs<'_, T>) -> Result<Self> {
        Ok(Self {
            wx: standard("wx", &x.wx, &shapes.wx())?,
            s0: optional("s0", &x.s0, &shapes.state())?,
            lengths: optional("lengths", &x.lengths, &[shapes.batch])?,
            resets: optional("resets", &x.resets, &shapes.resets())?,
        })
    }
}
