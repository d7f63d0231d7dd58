//! Inference with weights that were packed once.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;

use candle_core::{DType, Device, Error, Result, Tensor, WithDType};
use flashrnn::any::AnyBuffer;
use flashrnn::{AnyBackend, Backend, Cell, Plan, Shapes, Step, Weights};

use crate::call::Written;
use crate::host::{Number, check, cpu, on_host, slice};
use crate::sequence::Sequence;
use crate::{Output, Rnn, SequenceOptions};

/// A recurrence whose weights were packed once, by [`Rnn::freeze`], for inference.
///
/// candle's variables change in place, and nothing tells when. [`Rnn::forward`] therefore packs its
/// weights on every call; what is frozen keeps the values of that moment, until it is frozen again.
/// Its outputs depend on no variable.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use flashrnn::Lstm;
/// use flashrnn_candle::Rnn;
///
/// # fn main() -> candle_core::Result<()> {
/// let (heads, head_dim) = (2, 16);
/// let r = Tensor::randn(0f32, 0.2, (4, heads, head_dim, head_dim), &Device::Cpu)?; // [Gr, N, D_out, D_in]
/// let b = Tensor::zeros((4, heads, head_dim), DType::F32, &Device::Cpu)?; // [G, N, D]
///
/// let frozen = Rnn::new(Lstm).freeze(&r, &b, DType::F32)?;
/// let mut state = frozen.state(1)?;
/// for _ in 0..3 {
///     let wx = Tensor::randn(0f32, 1.0, (1, 4, heads, head_dim), &Device::Cpu)?; // [B, Gx, N, D]
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
    pub(crate) fn new(calls: Box<dyn FrozenCalls>, dtype: DType) -> Self {
        Self { calls, dtype }
    }

    /// Runs the recurrence over `wx [B, T, Gx, N, D]` (or time-major), of any B and T.
    ///
    /// # Errors
    /// As [`Rnn::forward`], and where `wx` has another type than the weights were frozen for.
    pub fn forward(&self, wx: &Tensor, options: &SequenceOptions) -> Result<Output> {
        self.check_type(wx)?;
        self.calls.forward(wx, options)
    }

    /// Makes the state of `batch` rows before any step: zeros.
    ///
    /// # Errors
    /// Where memory runs out.
    pub fn state(&self, batch: usize) -> Result<State> {
        self.calls.state(batch, None)
    }

    /// Makes a state from `s0 [S, B, N, D]`, such as an [`Output::last`].
    ///
    /// # Errors
    /// Where `s0` has another shape or no float type, or is on another device than the CPU.
    pub fn state_from(&self, s0: &Tensor) -> Result<State> {
        self.calls.state(s0.dims4()?.1, Some(s0))
    }

    /// Advances `state` by one time step with `wx [B, Gx, N, D]`, and returns h `[B, N, D]` in the
    /// type of `wx`.
    ///
    /// The options `reverse` and `layout` play no part.
    ///
    /// # Errors
    /// Where `wx` has another shape or type, or `state` is of another recurrence.
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
    /// Copies the state into a tensor `[S, B, N, D]`, f32, or f64 beside an f64 `wx`.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn to_tensor(&self) -> Result<Tensor> {
        self.memory.to_tensor(&self.shape)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// A buffer of any backend and element type.
trait StateMemory: Any + Send + Sync {
    fn to_tensor(&self, shape: &[usize]) -> Result<Tensor>;
}

struct Memory<P: Number> {
    backend: AnyBackend,
    buffer: AnyBuffer<P>,
}

impl<P: Number> StateMemory for Memory<P> {
    fn to_tensor(&self, shape: &[usize]) -> Result<Tensor> {
        let values = self.backend.download(self.buffer.view()).map_err(Error::wrap)?;
        Tensor::from_vec(values, shape, &Device::Cpu)
    }
}

/// What [`Frozen`] calls, whatever the cell, the backend and the element types.
pub(crate) trait FrozenCalls: Send + Sync {
    fn forward(&self, wx: &Tensor, options: &SequenceOptions) -> Result<Output>;
    fn state(&self, batch: usize, s0: Option<&Tensor>) -> Result<State>;
    fn step(&self, wx: &Tensor, state: &mut State) -> Result<Tensor>;
}

/// Packed weights for a wx of `T`, made from an r and a b of `W`.
pub(crate) struct Typed<C, T: Number, W: Number> {
    rnn: Rnn<C>,
    weights: Weights<AnyBackend, T>,
    /// With one row and one step.
    shapes: Shapes,
    of: PhantomData<fn() -> W>,
}

impl<C: Cell, T: Number, W: Number> Typed<C, T, W> {
    /// Packs r and b, of as many elements as `shapes` says.
    pub fn pack(rnn: Rnn<C>, r: &Tensor, b: &Tensor, shapes: &Shapes) -> Result<Self> {
        let (r, b) = (r.contiguous()?, b.contiguous()?);
        let ((r, r_layout), (b, b_layout)) = (r.storage_and_layout(), b.storage_and_layout());
        let (r, b) = (slice(cpu(&r)?, r_layout)?, slice(cpu(&b)?, b_layout)?);
        let weights = rnn.call::<T, W>(shapes, Sequence::default())?.pack(r, b)?;
        Ok(Self { rnn, weights, shapes: shapes.clone(), of: PhantomData })
    }

    /// The shapes of one step of `batch` rows.
    fn step_shapes(&self, batch: usize) -> Shapes {
        Shapes { batch, ..self.shapes.clone() }
    }

    /// Brings an initial state, of any float type, to the backend.
    fn upload(&self, s0: &Tensor) -> Result<AnyBuffer<T::Wide>> {
        let s0 = s0.to_dtype(<T::Wide as WithDType>::DTYPE)?.contiguous()?;
        let (storage, layout) = s0.storage_and_layout();
        self.rnn.backend().upload(slice(cpu(&storage)?, layout)?).map_err(Error::wrap)
    }
}

impl<C: Cell, T: Number, W: Number> FrozenCalls for Typed<C, T, W> {
    fn forward(&self, wx: &Tensor, options: &SequenceOptions) -> Result<Output> {
        let shapes = self.rnn.shapes_of(wx)?;
        on_host([("wx", wx)])?;
        let sequence = Sequence::read(options, &shapes)?;
        let s0 = sequence.s0.map(|s0| self.upload(s0)).transpose()?;
        let wx = wx.contiguous()?;
        let (storage, layout) = wx.storage_and_layout();
        let call = self.rnn.call::<T, W>(&shapes, sequence)?;
        let Written { head, last, .. } =
            call.forward(&self.weights, slice(cpu(&storage)?, layout)?, s0.as_ref(), false)?;
        let last = Tensor::from_vec(last, shapes.state().as_slice(), &Device::Cpu)?;
        if call.all_states {
            let states = Tensor::from_vec(head, shapes.states().as_slice(), &Device::Cpu)?;
            return Ok(Output { h: states.get(0)?, last, states: Some(states) });
        }
        Ok(Output {
            h: Tensor::from_vec(head, shapes.h().as_slice(), &Device::Cpu)?,
            last,
            states: None,
        })
    }

    fn state(&self, batch: usize, s0: Option<&Tensor>) -> Result<State> {
        let shapes = self.step_shapes(batch);
        let shape = shapes.state();
        Sequence::read(&SequenceOptions { s0, ..SequenceOptions::default() }, &shapes)?;
        let backend = self.rnn.backend().clone();
        let buffer = match s0 {
            Some(s0) => self.upload(s0)?,
            None => backend.alloc(shape.iter().product()).map_err(Error::wrap)?,
        };
        Ok(State { shape, memory: Box::new(Memory::<T::Wide> { backend, buffer }) })
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
                "state: of another recurrence; make it with Frozen::state of this one",
            ));
        };
        on_host([("wx", wx)])?;
        let wx = wx.contiguous()?;
        let (storage, layout) = wx.storage_and_layout();
        let call = self.rnn.call::<T, W>(&shapes, Sequence::default())?;
        let staged = call.stage(slice(cpu(&storage)?, layout)?)?;
        let mut h = call.alloc(batch * heads * head_dim)?;
        call.plan
            .step(Step {
                weights: &self.weights,
                wx: staged.view(),
                state: memory.buffer.view_mut(),
                h: Some(h.view_mut()),
            })
            .map_err(Error::wrap)?;
        Tensor::from_vec(call.read(h)?, (batch, heads, head_dim), &Device::Cpu)
    }
}
