//! Inference with a layer whose weights were packed once.

use candle_core::{Error, Result, Tensor};

use crate::host::on_host;
use crate::product::Product;
use crate::{Frozen, Output, SequenceOptions, State};

/// A layer for inference, whose parameters were copied and packed once by
/// [`RnnLayer::freeze`](crate::RnnLayer::freeze).
///
/// It keeps the values that the parameters had when it was made; freeze the layer again after an
/// optimiser step. Its outputs are not connected to any variable.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use flashrnn::Gru;
/// use flashrnn_candle::{LayerSize, Rnn, RnnLayer, SequenceOptions};
///
/// # fn main() -> candle_core::Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let layer = RnnLayer::new(Rnn::new(Gru), LayerSize { input: 8, heads: 2, head_dim: 16 }, vb)?;
///
/// let frozen = layer.freeze()?;
/// let prompt = Tensor::randn(0f32, 1.0, (1, 100, 8), &Device::Cpu)?; // [B, T, I]
/// let out = frozen.forward(&prompt, &SequenceOptions::default())?;
/// let mut state = frozen.state_from(&out.last)?;
/// for _ in 0..3 {
///     let x = Tensor::randn(0f32, 1.0, (1, 8), &Device::Cpu)?; // [B, I]
///     let h = frozen.step(&x, &mut state)?;
///     assert_eq!(h.dims(), [1, 2, 16]); // [B, N, D]
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FrozenLayer {
    frozen: Frozen,
    /// `[Gx·N·D, I]`
    w: Tensor,
    /// `Gx`, `N`, `D`
    gates: [usize; 3],
}

impl FrozenLayer {
    pub(crate) fn new(frozen: Frozen, w: &Tensor, gates: [usize; 3]) -> Result<Self> {
        on_host([("w", w)])?;
        Ok(Self { frozen, w: w.detach().force_contiguous()?, gates })
    }

    /// Runs the layer over `x [B, T, I]` (or time-major), for any B and T.
    ///
    /// # Errors
    /// The same as [`RnnLayer::forward`](crate::RnnLayer::forward).
    pub fn forward(&self, x: &Tensor, options: &SequenceOptions) -> Result<Output> {
        self.frozen.forward(&self.product(x, 3)?, options)
    }

    /// Makes the initial state of `batch` rows, filled with zeros.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn state(&self, batch: usize) -> Result<State> {
        self.frozen.state(batch)
    }

    /// Makes a state from `s0 [S, B, N, D]`, such as an [`Output::last`].
    ///
    /// # Errors
    /// If `s0` has the wrong shape, is not of a float type, or is not on the CPU.
    pub fn state_from(&self, s0: &Tensor) -> Result<State> {
        self.frozen.state_from(s0)
    }

    /// Advances `state` by one time step with `x [B, I]`, and returns h `[B, N, D]`.
    ///
    /// # Errors
    /// The same as [`Frozen::step`].
    pub fn step(&self, x: &Tensor, state: &mut State) -> Result<Tensor> {
        self.frozen.step(&self.product(x, 2)?, state)
    }

    /// Computes `W x` in the shape `[.., Gx, N, D]`, for an x with `axes` axes.
    fn product(&self, x: &Tensor, axes: usize) -> Result<Tensor> {
        on_host([("x", x)])?;
        let input = self.w.dim(1)?;
        match x.dims().split_last() {
            Some((&features, outer)) if features == input && x.rank() == axes => {
                let product = Product::new([outer, &self.gates].concat(), None);
                x.contiguous()?.apply_op2_no_bwd(&self.w, &product)
            }
            _ => {
                let order = if axes == 2 { "[B, I]" } else { "[B, T, I] or [T, B, I]" };
                Err(Error::msg(format!(
                    "x: got shape {:?}, wanted {order} with I = {input}",
                    x.dims()
                )))
            }
        }
    }
}
