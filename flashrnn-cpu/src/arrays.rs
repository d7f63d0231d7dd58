//! Calls that take views of ndarray arrays and return new arrays.

use flashrnn_core::{
    Backend, Backward, Element, Error, Forward, Plan, Result, Saved, Shapes, Weights,
};
use ndarray::{
    Array, Array3, Array4, Array5, ArrayView, ArrayView1, ArrayView2, ArrayView3, ArrayView4,
    ArrayView5, CowArray, Dimension, ShapeBuilder,
};

use crate::cpu::Cpu;
use crate::plan::CpuPlan;

/// The inputs of the forward pass, except the weights. Arrays may have any strides; those that are
/// not contiguous are copied. In time-major problems the first two axes of `wx` and `resets` are
/// swapped.
#[derive(Clone, Debug)]
pub struct Inputs<'a, T: Element> {
    /// `[B, T, Gx, N, D]`
    pub wx: ArrayView5<'a, T>,
    /// The initial state `[S, B, N, D]`; zeros if absent.
    pub s0: Option<ArrayView4<'a, T::Wide>>,
    /// The number of steps of each row, 0 to T, `[B]`; T if absent.
    pub lengths: Option<ArrayView1<'a, i32>>,
    /// `[B, T]`: the state is zeroed before a step whose flag is not 0.
    pub resets: Option<ArrayView2<'a, u8>>,
}

impl<'a, T: Element> Inputs<'a, T> {
    /// Makes inputs with no optional tensor.
    #[must_use]
    pub fn new(wx: ArrayView5<'a, T>) -> Self {
        Self { wx, s0: None, lengths: None, resets: None }
    }
}

/// The outputs of the forward pass.
#[derive(Debug)]
pub struct Outputs<T: Element> {
    /// `[S, B, T, N, D]` (time-major: `[S, T, B, N, D]`); the first is h.
    pub states: Array5<T>,
    /// `[S, B, N, D]`
    pub last: Array4<T::Wide>,
    /// The other tensors that the backward pass reads.
    saved: Saved<Cpu, T>,
}

/// The gradients of the outputs. An absent gradient counts as zero.
#[derive(Debug)]
pub struct OutputGradients<'a, T: Element> {
    /// `[S, B, T, N, D]` (time-major: `[S, T, B, N, D]`)
    pub d_states: Option<ArrayView5<'a, T>>,
    /// `[S, B, N, D]`
    pub d_last: Option<ArrayView4<'a, T::Wide>>,
}

/// The gradients of the inputs and weights.
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

/// Returns a view's elements in row-major order.
///
/// # Errors
/// [`Error::Shape`] if the dimensions of the view are not `want`.
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

/// Applies [`standard`] to an optional tensor.
fn optional<'a, P: Clone, D: Dimension>(
    tensor: &'static str,
    view: &'a Option<ArrayView<'_, P, D>>,
    want: &[usize],
) -> Result<Option<CowArray<'a, P, D>>> {
    view.as_ref().map(|view| standard(tensor, view, want)).transpose()
}

/// Returns the elements of an array returned by [`standard`].
fn slice<'a, P: Clone, D: Dimension>(array: &'a CowArray<'_, P, D>) -> &'a [P] {
    array.as_slice().unwrap_or(&[])
}

/// Returns a zeroed array of `len` elements.
///
/// # Errors
/// [`Error::OutOfMemory`] if the allocation fails.
fn zeros<P: Element, D: Dimension>(
    shape: impl ShapeBuilder<Dim = D>,
    cpu: &Cpu,
    len: usize,
) -> Result<Array<P, D>> {
    let buffer = cpu.alloc(len)?;
    Array::from_shape_vec(shape, buffer)
        .map_err(|e| Error::device_because("could not shape an array", e))
}

/// Calls [`zeros`] with the dimensions `$shape`.
macro_rules! zeros {
    ($cpu:expr, $shape:expr) => {{
        let shape = $shape;
        zeros(shape, $cpu, shape.iter().product())
    }};
}

impl<T: Element, W: Element> CpuPlan<T, W> {
    /// Packs `r [Gr, N, D_out, D_in]` and `b [G, N, D]`, as [`Plan::pack`] does.
    ///
    /// # Errors
    /// [`Error::Shape`] if a dimension is wrong, [`Error::OutOfMemory`] if an allocation fails.
    pub fn pack_arrays(
        &self,
        r: ArrayView4<'_, W>,
        b: ArrayView3<'_, W>,
    ) -> Result<Weights<Cpu, T>> {
        let shapes = self.shapes();
        let (r, b) = (standard("r", &r, &shapes.r())?, standard("b", &b, &shapes.b())?);
        self.pack(slice(&r), slice(&b))
    }

    /// Runs [`Plan::forward`] on arrays and saves what a backward pass needs.
    ///
    /// # Errors
    /// Same as [`Plan::forward`].
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

    /// Runs [`Plan::backward`] on arrays. `x` and `outputs` are those of the forward pass.
    ///
    /// # Errors
    /// Same as [`Plan::backward`].
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

/// [`Inputs`] in row-major order, with their dimensions checked.
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
