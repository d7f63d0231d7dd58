//! A recurrent layer with its parameters: the input product W, the recurrence R and the biases.

use candle_core::{Error, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use flashrnn::cell::Array;
use flashrnn::{Cell, CellSizes, Cpu, Layout};

use crate::torch::{FromTorch, TorchTensors};
use crate::{Bridge, Optional, Output, Rnn, Weights};

/// The size of an [`RnnLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSize {
    /// `I`, the number of input features.
    pub input: usize,
    /// `N`, the number of heads.
    pub heads: usize,
    /// `D`, the number of units of a head.
    pub head_dim: usize,
}

/// A recurrent layer: `wx = W x`, then [`Rnn::forward`].
///
/// | parameter | shape | made new as |
/// |---|---|---|
/// | `w` | `[Gx·N·D, I]` | uniform in ±1/√I |
/// | `r` | `[Gr, N, D_out, D_in]` | uniform in ±1/√D |
/// | `b_NAME`, one for each gate of the cell | `[N, D]` | 0; for the forget gate `f` 1 |
///
/// The biases are named after [`Cell::GATES`]: `b_i`, `b_f`, `b_z`, `b_o` for LSTM and sLSTM, `b_g` for Elman, and for
/// GRU `b_n_h`, `b_r`, `b_z`, `b_n_x`, where `b_n_h` is PyTorch's b_hn, inside the reset gate, and `b_n_x` its b_in.
/// A forget bias of 1 lets a new network remember.
#[derive(Clone, Debug)]
pub struct RnnLayer<C, B = Cpu> {
    rnn: Rnn<C, B>,
    /// `[Gx·N·D, I]`
    w: Tensor,
    /// `[Gr, N, D_out, D_in]`
    r: Tensor,
    /// `G` of `[N, D]`
    b: Vec<Tensor>,
}

impl<C: Cell, B: Bridge> RnnLayer<C, B> {
    /// Finds the parameters in `vb`, or makes them new where `vb` does.
    ///
    /// # Errors
    /// Where a size is 0, or a parameter is missing or of another shape.
    pub fn new(rnn: Rnn<C, B>, size: LayerSize, vb: VarBuilder) -> Result<Self> {
        let LayerSize { input, heads, head_dim } = size;
        for (name, size) in [("input", input), ("heads", heads), ("head_dim", head_dim)] {
            if size == 0 {
                return Err(Error::msg(format!("layer size {name}: got 0, wanted at least 1")));
            }
        }
        let uniform = |fan_in: usize| {
            let bound = 1.0 / (fan_in as f64).sqrt();
            Init::Uniform { lo: -bound, up: bound }
        };
        let w = vb.get_with_hints((C::GX * heads * head_dim, input), "w", uniform(input))?;
        let r = vb.get_with_hints((C::GR, heads, head_dim, head_dim), "r", uniform(head_dim))?;
        let bias = |gate: &&str| {
            let value = if *gate == "f" { 1.0 } else { 0.0 };
            vb.get_with_hints((heads, head_dim), &format!("b_{gate}"), Init::Const(value))
        };
        let b = C::GATES.iter().map(bias).collect::<Result<_>>()?;
        Ok(Self { rnn, w, r, b })
    }

    /// A layer from weights that are at hand, shaped as [`Weights`] says.
    ///
    /// # Errors
    /// Where shapes contradict each other or the cell.
    pub fn from_weights(rnn: Rnn<C, B>, weights: &Weights) -> Result<Self> {
        let Weights { w, r, b } = weights;
        let gates = C::G;
        let &[recurrent, heads, head_dim, inner] = r.dims() else {
            return Err(Error::msg(format!("r: got shape {:?}, wanted [Gr, N, D_out, D_in]", r.dims())));
        };
        let consistent = recurrent == C::GR
            && head_dim == inner
            && b.dims() == [gates, heads, head_dim]
            && matches!(w.dims(), &[rows, _] if rows == C::GX * heads * head_dim);
        if !consistent {
            let (w, r, b) = (w.dims(), r.dims(), b.dims());
            return Err(Error::msg(format!(
                "w {w:?}, r {r:?} and b {b:?} don't fit {}: wanted [{}·N·D, I], [{}, N, D, D] and [{gates}, N, D]",
                C::NAME,
                C::GX,
                C::GR,
            )));
        }
        let b = (0..gates).map(|k| b.get(k)).collect::<Result<_>>()?;
        Ok(Self { rnn, w: w.clone(), r: r.clone(), b })
    }

    /// Runs the layer over `x [B, T, I]` (`[T, B, I]` with [`Layout::TimeMajor`]).
    ///
    /// `h` in the result is `[B, T, N, D]`; `h.flatten_from(2)` makes it the next layer's `[B, T, N·D]`.
    ///
    /// # Errors
    /// As [`Rnn::forward`].
    pub fn forward(&self, x: &Tensor, optional: &Optional) -> Result<Output> {
        let (_, input) = self.w.dims2()?;
        let (outer, inner) = match x.dims() {
            &[outer, inner, features] if features == input => (outer, inner),
            got => {
                let order = match self.rnn.layout {
                    Layout::BatchMajor => "B, T",
                    Layout::TimeMajor => "T, B",
                };
                return Err(Error::msg(format!("x: got shape {got:?}, wanted [{order}, {input}]")));
            }
        };
        let (_, heads, head_dim, _) = self.r.dims4()?;
        // One large product: [B·T, I] [I, Gx·N·D]. A matrix of no rows is not one that candle multiplies.
        let wx = match outer * inner {
            0 => Tensor::zeros((0, C::GX * heads * head_dim), x.dtype(), x.device())?,
            tokens => x.reshape((tokens, input))?.matmul(&self.w.t()?)?,
        };
        let wx = wx.reshape((outer, inner, C::GX, heads, head_dim))?;
        self.rnn.forward(&wx, &self.r, &Tensor::stack(&self.b, 0)?, optional)
    }

    /// The recurrence and its options.
    pub fn rnn(&self) -> &Rnn<C, B> {
        &self.rnn
    }

    /// A copy of the parameters, the biases stacked.
    ///
    /// # Errors
    /// Where memory runs out.
    pub fn weights(&self) -> Result<Weights> {
        Ok(Weights { w: self.w.clone(), r: self.r.clone(), b: Tensor::stack(&self.b, 0)? })
    }
}

impl<C: FromTorch, B: Bridge> RnnLayer<C, B> {
    /// A layer with the weights of one layer and direction of PyTorch's `nn.LSTM`, `nn.GRU` or `nn.RNN`.
    ///
    /// `suffix` is what PyTorch's names end in: `l0`, `l1`, …, and `l0_reverse` for the other direction of a
    /// bidirectional layer, which goes with `Rnn { reverse: true, .. }`. `input` and `hidden` are its `input_size` (of a
    /// later layer, the width of the one below) and `hidden_size`.
    ///
    /// # Errors
    /// Where a weight is missing or of another shape. Biases may be absent, as with `bias=False`.
    pub fn from_torch(
        rnn: Rnn<C, B>,
        input: usize,
        hidden: usize,
        suffix: &str,
        vb: VarBuilder,
    ) -> Result<Self> {
        let tensors = TorchTensors::find(C::GX * hidden, input, hidden, suffix, &vb)?;
        Self::from_weights(rnn, &C::from_torch(&tensors)?)
    }
}
