//! Inference with a module whose parameters were packed once.

use candle_core::{Error, Result, Tensor};

use crate::frozen_layer::FrozenLayer;
use crate::stack::{Stack, layer_state};
use crate::storage::check;
use crate::{RnnOutput, SequenceOptions, State};

/// A module for inference, whose parameters were copied and packed once by
/// [`Rnn::freeze`](crate::Rnn::freeze).
///
/// It keeps the values that the parameters had when it was made; freeze the module again after an
/// optimiser step. Its outputs are not connected to any variable.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use flashrnn_candle::{Gru, RnnConfig, SequenceOptions};
///
/// # fn main() -> candle_core::Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let gru = Gru::new(8, 32, RnnConfig { layers: 2, ..RnnConfig::default() }, vb)?;
///
/// let frozen = gru.freeze()?;
/// let prompt = Tensor::randn(0f32, 1.0, (1, 100, 8), &Device::Cpu)?; // [B, T, I]
/// let out = frozen.forward(&prompt, &SequenceOptions::default())?;
/// let mut state = frozen.state_from(&out.last)?;
/// for _ in 0..3 {
///     let x = Tensor::randn(0f32, 1.0, (1, 8), &Device::Cpu)?; // [B, I]
///     let h = frozen.step(&x, &mut state)?;
///     assert_eq!(h.dims(), [1, 32]); // [B, N·D]
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FrozenRnn {
    stack: Stack<FrozenLayer>,
}

/// The state that [`FrozenRnn::step`] carries from one time step to the next, in the backend's
/// memory.
#[derive(Debug)]
pub struct RnnState {
    /// One per layer.
    layers: Vec<State>,
}

impl RnnState {
    /// Copies the state into a tensor `[S, L, B, N, D]` of f32, or of f64 if `x` is f64.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let states = self.layers.iter().map(State::to_tensor).collect::<Result<Vec<_>>>()?;
        Tensor::stack(&states, 1)
    }
}

impl FrozenRnn {
    pub(crate) fn new(stack: Stack<FrozenLayer>) -> Self {
        Self { stack }
    }

    /// Runs the module over `x [B, T, I]` (or time-major), for any B and T.
    ///
    /// # Errors
    /// The same as [`Rnn::forward`](crate::Rnn::forward).
    pub fn forward(&self, x: &Tensor, options: &SequenceOptions) -> Result<RnnOutput> {
        self.stack.forward(x, options, false, FrozenLayer::forward)
    }

    /// Makes the initial state of `batch` rows, filled with zeros.
    ///
    /// # Errors
    /// If the module is bidirectional, or memory runs out.
    pub fn state(&self, batch: usize) -> Result<RnnState> {
        self.stack.check_steps()?;
        let layers = self.stack.layers.iter().map(|layer| layer.state(batch));
        Ok(RnnState { layers: layers.collect::<Result<_>>()? })
    }

    /// Makes a state from `s0 [S, L, B, N, D]`, such as an [`RnnOutput::last`].
    ///
    /// # Errors
    /// If the module is bidirectional, or `s0` has the wrong shape, is not of a float type, or is on
    /// another device than the weights.
    pub fn state_from(&self, s0: &Tensor) -> Result<RnnState> {
        self.stack.check_steps()?;
        let &[_, _, batch, _, _] = s0.dims() else {
            return Err(Error::msg(format!(
                "s0: got shape {:?}, wanted [S, L, B, N, D]",
                s0.dims()
            )));
        };
        check("s0", s0, &self.stack.state_shape(batch))?;
        let layers = self.stack.layers.iter().enumerate();
        let layers = layers.map(|(index, layer)| layer.state_from(&layer_state(s0, index)?));
        Ok(RnnState { layers: layers.collect::<Result<_>>()? })
    }

    /// Advances `state` by one time step with `x [B, I]`, and returns h `[B, N·D]`.
    ///
    /// Ignores the options `reverse` and `layout`. After an error in a layer, `state` may have
    /// advanced in the layers below.
    ///
    /// # Errors
    /// If `x` has the wrong shape or type, or `state` belongs to another module.
    pub fn step(&self, x: &Tensor, state: &mut RnnState) -> Result<Tensor> {
        if state.layers.len() != self.stack.layers.len() {
            return Err(Error::msg(format!(
                "state: got {} layers, wanted {}; it belongs to another module",
                state.layers.len(),
                self.stack.layers.len()
            )));
        }
        let mut x = x.clone();
        for (layer, state) in self.stack.layers.iter().zip(&mut state.layers) {
            x = layer.step(&x, state)?.flatten_from(1)?;
        }
        Ok(x)
    }
}
