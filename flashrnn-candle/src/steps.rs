//! candle-nn's trait of recurrent networks, for code that is generic over it.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{DType, Error, Result, Tensor};
use candle_nn::RNN;
use flashrnn::{Cell, Layout};

use crate::{Rnn, SequenceOptions};

/// The state of a module after a step, as candle-nn's trait [`RNN`] passes it from one step to the
/// next.
///
/// The states that [`RNN::seq`] returns refer to the sequence as a whole, and tensors are made when
/// they are asked for.
#[derive(Clone, Debug)]
pub struct StepState(Source);

#[derive(Clone, Debug)]
enum Source {
    /// `[S, L, B, N, D]`, and the type of h.
    Single(Tensor, DType),
    /// A step of a sequence.
    Step(Arc<Steps>, usize),
}

/// The outputs of a sequence.
#[derive(Debug)]
struct Steps {
    /// `[B, T, N·D]`
    h: Tensor,
    /// One `[S, B, T, N, D]` per layer
    states: Vec<Tensor>,
}

impl StepState {
    /// Returns the last layer's h, `[B, N·D]`, in the type of `x`.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn h(&self) -> Result<Tensor> {
        match &self.0 {
            Source::Single(states, dtype) => {
                let last = states.get(0)?.get(states.dim(1)? - 1)?;
                last.flatten_from(1)?.to_dtype(*dtype)
            }
            Source::Step(sequence, step) => sequence.h.narrow(1, *step, 1)?.squeeze(1),
        }
    }

    /// Returns every state of every layer, `[S, L, B, N, D]`, in f32, or in f64 if `x` is f64. In a
    /// sequence of 16 bits they were rounded to 16 bits, unlike
    /// [`RnnOutput::last`](crate::RnnOutput).
    ///
    /// # Errors
    /// If memory runs out.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match &self.0 {
            Source::Single(states, _) => Ok(states.clone()),
            Source::Step(sequence, step) => {
                let states = sequence.states.iter();
                let states = states.map(|states| states.narrow(2, *step, 1)?.squeeze(2));
                let states = Tensor::stack(&states.collect::<Result<Vec<_>>>()?, 1)?;
                states.to_dtype(wide(states.dtype()))
            }
        }
    }

    /// Returns the sequence and the step that this state refers to.
    fn step(&self) -> Option<(&Arc<Steps>, usize)> {
        match &self.0 {
            Source::Single(..) => None,
            Source::Step(sequence, step) => Some((sequence, *step)),
        }
    }
}

/// Returns the type of states that are carried between steps.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// A module of one direction that is batch-major and not reversed. Every other one returns errors.
///
/// `seq` runs the whole sequence in one pass and `states_to_tensor` of its result costs nothing, but
/// every state is kept; [`Rnn::forward`] is faster. `step` is differentiable and packs the weights
/// at every call; [`FrozenRnn::step`](crate::FrozenRnn::step) does not.
impl<C: Cell> RNN for Rnn<C> {
    type State = StepState;

    fn zero_state(&self, batch: usize) -> Result<StepState> {
        let w = self.stack.layers.first().map(|layer| layer.parameters.w());
        let w = w.ok_or_else(|| Error::msg("flashrnn: a module without layers"))?;
        let shape = self.stack.state_shape(batch);
        let zeros = Tensor::zeros(shape.as_slice(), wide(w.dtype()), w.device())?;
        Ok(StepState(Source::Single(zeros, w.dtype())))
    }

    /// Runs one step on `input [B, I]`.
    fn step(&self, input: &Tensor, state: &StepState) -> Result<StepState> {
        self.check_rnn()?;
        let s0 = state.to_tensor()?;
        let options = SequenceOptions { s0: Some(&s0), ..SequenceOptions::default() };
        let out = self.forward(&input.unsqueeze(1)?, &options, false)?;
        Ok(StepState(Source::Single(out.last, input.dtype())))
    }

    /// Runs all steps of `input [B, T, I]` in one pass.
    fn seq_init(&self, input: &Tensor, state: &StepState) -> Result<Vec<StepState>> {
        self.check_rnn()?;
        let s0 = state.to_tensor()?;
        let options = SequenceOptions { s0: Some(&s0), ..SequenceOptions::default() };
        let states = RefCell::new(vec![]);
        let out = self.stack.forward(input, &options, false, |layer, x, options| {
            let out = layer.with_all_states().forward(x, options)?;
            states.borrow_mut().extend(out.states.clone());
            Ok(out)
        })?;
        let time = out.h.dim(1)?;
        let sequence = Arc::new(Steps { h: out.h, states: states.into_inner() });
        Ok((0..time).map(|t| StepState(Source::Step(sequence.clone(), t))).collect())
    }

    /// Returns the last layer's h at the steps of `states`, `[B, T, N·D]`.
    fn states_to_tensor(&self, states: &[StepState]) -> Result<Tensor> {
        if let Some((sequence, first)) = states.first().and_then(StepState::step) {
            let consecutive = states.iter().enumerate().all(|(i, state)| {
                state
                    .step()
                    .is_some_and(|(other, step)| Arc::ptr_eq(sequence, other) && step == first + i)
            });
            if consecutive {
                return sequence.h.narrow(1, first, states.len());
            }
        }
        Tensor::stack(&states.iter().map(StepState::h).collect::<Result<Vec<_>>>()?, 1)
    }
}

impl<C: Cell> Rnn<C> {
    /// Returns an error if the module does not fit candle-nn's trait.
    fn check_rnn(&self) -> Result<()> {
        self.stack.check_steps()?;
        let options = self.config().options;
        if options.reverse || options.layout == Layout::TimeMajor {
            return Err(Error::msg(
                "candle-nn's trait RNN runs forwards over [B, T, I], but options.reverse is set or \
                 options.layout is time-major",
            ));
        }
        Ok(())
    }
}
