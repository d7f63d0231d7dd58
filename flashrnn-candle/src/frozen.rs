//! Inference with weights packed once.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;

use candle_core::{DType, Error, Result, Tensor, WithDType};
use flashrnn::any::AnyBuffer;
use flashrnn::{AnyBackend, Backend, Cell, Plan, Shapes, Step, Weights};

use crate::call::{ForwardOutput, Rest};
use crate::place::Place;
use crate::recurrence::{Recurrence, by_types, same_type};
use crate::sequence::{Output, Sequence, SequenceOptions};
use crate::storage::{CandleType, Locked, Number, check, plain};

/// A recurrence for inference, whose weights were packed once by [`Recurrence::freeze`].
///
/// candle's variables may change in place at any time without notice, so [`Recurrence::forward`]
/// packs its weights on every call. A `Frozen` keeps the values its weights had when it was made.
/// Its outputs are not connected to any variable.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use flashrnn::Lstm;
/// use flashrnn_candle::Recurrence;
///
/// # fn main() -> candle_core::Result<()> {
/// let (heads, head_dim) = (2, 16);
/// // r: [Gr, N, D_out, D_in], b: [G, N, D]
/// let r = Tensor::randn(0f32, 0.2, (4, heads, head_dim, head_dim), &Device::Cpu)?;
/// let b = Tensor::zeros((4, heads, head_dim), DType::F32, &Device::Cpu)?;
///
/// let frozen = Recurrence::new(Lstm).freeze(&r, &b, DType::F32)?;
/// let mut state = frozen.state(1)?;
/// for _ in 0..3 {
///     // [B, Gx, N, D]
///     let wx = Tensor::randn(0f32, 1.0, (1, 4, heads, head_dim), &Device::Cpu)?;
///     let h = frozen.step(&wx, &mut state)?;
///     assert_eq!(h.dims(), [1, heads, head_dim]); // [B, N, D]
/// }
/// assert_eq!(state.to_tensor()?.dims(), [2, 1, heads, head_dim]); // [S, B, N, D]
/// # Ok(())
/// # }
/// ```
pub struct Frozen {
    calls: Box<dyn FrozenCalls>,
    dtype: DType,
}

impl Frozen {
    /// Runs the recurrence over `wx [B, T, Gx, N, D]` (or time-major), for any B and T.
    ///
    /// # Errors
    /// The same as [`Recurrence::forward`], and an error if the weights were frozen for another
    /// type of `wx`.
    pub fn forward(&self, wx: &Tensor, options: &SequenceOptions) -> Result<Output> {
        self.check_type(wx)?;
        self.calls.forward(wx, options)
    }

    /// Makes the initial state of `batch` rows, filled with zeros.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn state(&self, batch: usize) -> Result<State> {
        self.calls.state(batch, None)
    }

    /// Makes a state from `s0 [S, B, N, D]`, such as an [`Output::last`].
    ///
    /// # Errors
    /// If `s0` has the wrong shape, is not of a float type, or is on another device than
    /// the weights.
    pub fn state_from(&self, s0: &Tensor) -> Result<State> {
        self.calls.state(s0.dims4()?.1, Some(s0))
    }

    /// Advances `state` by one time step with `wx [B, Gx, N, D]`, and returns h `[B, N, D]` in the
    /// type of `wx`.
    ///
    /// Ignores the options `reverse` and `layout`.
    ///
    /// # Errors
    /// If `wx` has the wrong shape or type, or `state` belongs to another recurrence.
    pub fn step(&self, wx: &Tensor, state: &mut State) -> Result<Tensor> {
        self.check_type(wx)?;
        self.calls.step(wx, state)
    }

    fn check_type(&self, wx: &Tensor) -> Result<()> {
        if wx.dtype() == self.dtype {
            return Ok(());
        }
        let (got, wanted) = (wx.dtype(), self.dtype);
        Err(Error::msg(format!("wx is {got:?}; the weights were frozen for {wanted:?}")))
    }
}

impl<C: Cell> Recurrence<C> {
    /// Packs `r [Gr, N, D_out, D_in]` and `b [G, N, D]` once, for inference with a `wx` of type
    /// `dtype`.
    ///
    /// Later changes of the tensors do not affect the result.
    ///
    /// # Errors
    /// The same as [`Recurrence::forward`].
    pub fn freeze(&self, r: &Tensor, b: &Tensor, dtype: DType) -> Result<Frozen> {
        let &[_, heads, head_dim, _] = r.dims() else {
            return Err(Error::msg(format!(
                "r: got shape {:?}, wanted [Gr, N, D_out, D_in]",
                r.dims()
            )));
        };
        let shapes = self.problem([1, 1], heads, head_dim).shapes::<C>().map_err(Error::wrap)?;
        check("r", r, &shapes.r())?;
        check("b", b, &shapes.b())?;
        self.freeze_flat(r, b, dtype, &shapes)
    }

    /// Does what [`Recurrence::freeze`] does, for weights with the right number of elements but any
    /// shape.
    pub(crate) fn freeze_flat(
        &self,
        r: &Tensor,
        b: &Tensor,
        dtype: DType,
        shapes: &Shapes,
    ) -> Result<Frozen> {
        let calls = by_types!(dtype, r.dtype(), self.boxed_calls(r, b, shapes))?;
        Ok(Frozen { calls, dtype })
    }

    fn boxed_calls<T: Number, W: Number>(
        &self,
        r: &Tensor,
        b: &Tensor,
        shapes: &Shapes,
    ) -> Result<Box<dyn FrozenCalls>> {
        same_type(&[r, b])?;
        Ok(Box::new(Typed::<C, T, W>::pack(self.clone(), r, b, shapes)?))
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen").field("dtype", &self.dtype).finish_non_exhaustive()
    }
}

/// The state that [`Frozen::step`] carries from one time step to the next, in the backend's memory.
pub struct State {
    /// `[S, B, N, D]`
    shape: [usize; 4],
    memory: Box<dyn StateMemory>,
}

impl State {
    /// Copies the state into a tensor `[S, B, N, D]` of f32, or of f64 if `wx` is f64.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_tensor(&self) -> Result<Tensor> {
        self.memory.to_tensor(&self.shape)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// A state in a buffer of any element type.
trait StateMemory: Any + Send + Sync {
    fn to_tensor(&self, shape: &[usize]) -> Result<Tensor>;
}

struct Memory<P: CandleType> {
    place: Place,
    buffer: AnyBuffer<P>,
}

impl<P: CandleType> StateMemory for Memory<P> {
    fn to_tensor(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(plain(self.place.copy(&self.buffer, shape.iter().product())?, shape))
    }
}

/// The methods of [`Frozen`], erased over the cell and the element types.
trait FrozenCalls: Send + Sync {
    fn forward(&self, wx: &Tensor, options: &SequenceOptions) -> Result<Output>;
    fn state(&self, batch: usize, s0: Option<&Tensor>) -> Result<State>;
    fn step(&self, wx: &Tensor, state: &mut State) -> Result<Tensor>;
}

/// Weights packed from r and b of type `W`, for a wx of type `T`.
struct Typed<C, T: Number, W: Number> {
    recurrence: Recurrence<C>,
    weights: Weights<AnyBackend, T>,
    /// An element of r, which says where other tensors must be.
    r: Tensor,
    /// The shapes for one row and one step.
    shapes: Shapes,
    weight_type: PhantomData<fn() -> W>,
}

impl<C: Cell, T: Number, W: Number> Typed<C, T, W> {
    /// Packs r and b, which have the numbers of elements given by `shapes`.
    fn pack(recurrence: Recurrence<C>, r: &Tensor, b: &Tensor, shapes: &Shapes) -> Result<Self> {
        let place = Place::of(recurrence.backend(), [("r", r), ("b", b)])?;
        let (r, b) = (r.detach().contiguous()?, b.contiguous()?);
        let weights = recurrence.call::<T, W>(place, shapes, Sequence::default())?.pack(&r, &b)?;
        // Keeps an element of r for its device, not all of its memory.
        let r = r.flatten_all()?.narrow(0, 0, 1)?.force_contiguous()?;
        Ok(Self { recurrence, weights, r, shapes: shapes.clone(), weight_type: PhantomData })
    }

    /// Returns the place of the weights, where `tensors` must be too.
    fn place<'a>(
        &'a self,
        tensors: impl IntoIterator<Item = (&'static str, &'a Tensor)>,
    ) -> Result<Place> {
        let weights = [("the frozen r", &self.r)];
        Place::of(self.recurrence.backend(), tensors.into_iter().chain(weights))
    }

    /// Returns the shapes for one step of `batch` rows.
    fn step_shapes(&self, batch: usize) -> Shapes {
        Shapes { batch, ..self.shapes.clone() }
    }

    /// Copies an initial state of any float type to the backend.
    fn upload(place: &Place, s0: &Tensor) -> Result<AnyBuffer<T::Wide>> {
        place.upload(&s0.to_dtype(<T::Wide as WithDType>::DTYPE)?)
    }
}

impl<C: Cell, T: Number, W: Number> FrozenCalls for Typed<C, T, W> {
    fn forward(&self, wx: &Tensor, options: &SequenceOptions) -> Result<Output> {
        let shapes = self.recurrence.shapes_of(wx)?;
        let place = self.place([("wx", wx)].into_iter().chain(options.tensors()))?;
        let sequence = Sequence::read(options, &shapes)?;
        let s0 = sequence.s0.map(|s0| Self::upload(&place, s0)).transpose()?;
        let call = self.recurrence.call::<T, W>(place, &shapes, sequence)?;
        let rest = Rest::Frozen(&self.weights, s0.as_ref());
        let ForwardOutput { head, last, .. } = call.forward(&wx.contiguous()?, rest, false)?;
        let (head, last) = (plain(head, call.head_shape()), plain(last, shapes.state().as_slice()));
        self.recurrence.output(head, last)
    }

    fn state(&self, batch: usize, s0: Option<&Tensor>) -> Result<State> {
        let shapes = self.step_shapes(batch);
        let shape = shapes.state();
        let options = SequenceOptions { s0, ..SequenceOptions::default() };
        let place = self.place(options.tensors())?;
        Sequence::read(&options, &shapes)?;
        let buffer = match s0 {
            Some(s0) => Self::upload(&place, s0)?,
            None => place.backend().alloc(shape.iter().product()).map_err(Error::wrap)?,
        };
        Ok(State { shape, memory: Box::new(Memory::<T::Wide> { place, buffer }) })
    }

    fn step(&self, wx: &Tensor, state: &mut State) -> Result<Tensor> {
        let shapes = self.step_shapes(state.shape[1]);
        let Shapes { batch, external, heads, head_dim, .. } = shapes;
        check("wx", wx, &[batch, external, heads, head_dim])?;
        let memory: &mut dyn Any = &mut *state.memory;
        let memory =
            memory.downcast_mut::<Memory<T::Wide>>().filter(|_| state.shape == shapes.state());
        let Some(memory) = memory else {
            return Err(Error::msg(
                "state: belongs to another recurrence; make it with this one's Frozen::state",
            ));
        };
        let place = self.place([("wx", wx)])?;
        let wx = wx.contiguous()?;
        let wx = Locked::new(&wx);
        let wx = place.input::<T>(&wx, 0..wx.len())?;
        let call = self.recurrence.call::<T, W>(place.clone(), &shapes, Sequence::default())?;
        let mut h = place.alloc::<T, 1>([batch * heads * head_dim])?;
        {
            let mut h = place.borrow_mut(&mut h);
            place.run(|| {
                let step = Step {
                    weights: &self.weights,
                    wx: wx.view(),
                    state: memory.buffer.view_mut(),
                    h: h.views().next(),
                };
                call.plan.step(step).map_err(Error::wrap)
            })?;
        }
        Ok(plain(place.storage(h)?, (batch, heads, head_dim)))
    }
}
