//! A recurrent layer with parameters: the input weights W, the recurrent weights R and the biases.

use candle_core::{Error, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use flashrnn::{Cell, CellSizes, Shapes};

use crate::host::{check, on_host};
use crate::join::concat;
use crate::product::{Product, padding_mask};
use crate::sequence::Sequence;
use crate::torch::{FromTorch, TorchWeights};
use crate::{FrozenLayer, Output, Rnn, SequenceOptions};

/// The sizes of an [`RnnLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSize {
    /// `I`, the number of input features.
    pub input: usize,
    /// `N`, the number of heads.
    pub heads: usize,
    /// `D`, the number of units per head.
    pub head_dim: usize,
}

impl LayerSize {
    fn check(self) -> Result<()> {
        let Self { input, heads, head_dim } = self;
        match [("input", input), ("heads", heads), ("head_dim", head_dim)]
            .iter()
            .find(|(_, size)| *size == 0)
        {
            None => Ok(()),
            Some((name, _)) => {
                Err(Error::msg(format!("layer size {name}: got 0, wanted at least 1")))
            }
        }
    }
}

/// The weights of a layer in flashrnn's order.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[Gx·N·D, I]`, the input weights. `wx` is `x Wᵀ` reshaped to `[B, T, Gx, N, D]`.
    pub w: Tensor,
    /// `[Gr, N, D_out, D_in]`, the recurrent weights.
    pub r: Tensor,
    /// `[G, N, D]`, the biases.
    pub b: Tensor,
}

/// A recurrent layer, which computes `wx = W x` and then [`Rnn::forward`].
///
/// | parameter | shape | initial value |
/// |---|---|---|
/// | `w` | `[Gx·N·D, I]` | uniform in ±1/√I |
/// | `r` | `[Gr, N, D_out, D_in]` | uniform in ±1/√D |
/// | `b_NAME`, one per gate of the cell | `[N, D]` | 0; 1 for the forget gate `f` |
///
/// The biases are named after [`Cell::GATES`]: `b_i`, `b_f`, `b_z`, `b_o` for LSTM and sLSTM, `b_g`
/// for Elman, and `b_n_h`, `b_r`, `b_z`, `b_n_x` for GRU, where `b_n_h` is PyTorch's b_hn, inside
/// the reset gate, and `b_n_x` its b_in. A forget bias of 1 helps a new network to remember.
///
/// The layer reads its parameters on every call, so it follows an optimiser that updates them.
#[derive(Clone, Debug)]
pub struct RnnLayer<C> {
    rnn: Rnn<C>,
    size: LayerSize,
    parameters: Parameters,
}

#[derive(Clone, Debug)]
enum Parameters {
    /// In flashrnn's order.
    Own {
        /// `[Gx·N·D, I]`
        w: Tensor,
        /// `[Gr, N, D_out, D_in]`
        r: Tensor,
        /// One `[N, D]` per gate, or one `[G, N, D]`
        b: Vec<Tensor>,
    },
    /// In PyTorch's order.
    Torch(TorchWeights),
}

impl Parameters {
    /// `[Gx·N·D, I]`
    fn w(&self) -> &Tensor {
        match self {
            Self::Own { w, .. } => w,
            Self::Torch(torch) => &torch.weight_ih,
        }
    }

    /// Returns r and b with their current values, with the right number of elements but any shape.
    fn recurrent(&self) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Own { r, b, .. } => Ok((r.clone(), flat(b)?)),
            Self::Torch(torch) => Ok((torch.r()?, torch.b()?)),
        }
    }
}

/// Concatenates the elements of all tensors.
fn flat(tensors: &[Tensor]) -> Result<Tensor> {
    let Some((first, others)) = tensors.split_first() else {
        return Err(Error::msg("flashrnn: a layer without biases"));
    };
    others.iter().try_fold(first.clone(), |joined, tensor| concat(&joined, tensor))
}

impl<C: Cell> RnnLayer<C> {
    /// Gets the parameters from `vb`, which creates them if it is backed by a `VarMap` without
    /// them.
    ///
    /// # Errors
    /// If a size is 0, or a parameter is missing or has the wrong shape.
    pub fn new(rnn: Rnn<C>, size: LayerSize, vb: VarBuilder) -> Result<Self> {
        size.check()?;
        let LayerSize { input, heads, head_dim } = size;
        let uniform = |fan_in: usize| {
            let bound = 1.0 / (fan_in as f64).sqrt();
            Init::Uniform { lo: -bound, up: bound }
        };
        let w = vb.get_with_hints((C::GX * heads * head_dim, input), "w", uniform(input))?;
        let r = vb.get_with_hints((C::GR, heads, head_dim, head_dim), "r", uniform(head_dim))?;
        let bias = |name: &str| {
            let value = if name == "f" { 1.0 } else { 0.0 };
            vb.get_with_hints((heads, head_dim), &format!("b_{name}"), Init::Const(value))
        };
        let b = C::GATES.iter().map(|gate| bias(gate.name())).collect::<Result<_>>()?;
        Ok(Self { rnn, size, parameters: Parameters::Own { w, r, b } })
    }

    /// Makes a layer from existing weights with the shapes given in [`Weights`]. If they are
    /// variables or computed from variables, gradients flow back to those variables.
    ///
    /// # Errors
    /// If the shapes contradict each other or the cell, or a size is 0.
    pub fn from_weights(rnn: Rnn<C>, weights: &Weights) -> Result<Self> {
        let Weights { w, r, b } = weights;
        let &[_, heads, head_dim, _] = r.dims() else {
            return Err(Error::msg(format!(
                "r: got shape {:?}, wanted [Gr, N, D_out, D_in]",
                r.dims()
            )));
        };
        let &[_, input] = w.dims() else {
            return Err(Error::msg(format!("w: got shape {:?}, wanted [Gx·N·D, I]", w.dims())));
        };
        let size = LayerSize { input, heads, head_dim };
        size.check()?;
        check("w", w, &[C::GX * heads * head_dim, input])?;
        check("r", r, &[C::GR, heads, head_dim, head_dim])?;
        check("b", b, &[C::G, heads, head_dim])?;
        Ok(Self {
            rnn,
            size,
            parameters: Parameters::Own { w: w.clone(), r: r.clone(), b: vec![b.clone()] },
        })
    }

    /// Runs the layer over `x [B, T, I]` (`[T, B, I]` with
    /// [`Layout::TimeMajor`](flashrnn::Layout)).
    ///
    /// `h` in the result is `[B, T, N, D]`. As the next layer's input, `h.flatten_from(2)` reshapes
    /// it to `[B, T, N·D]`.
    ///
    /// # Errors
    /// The same as [`Rnn::forward`].
    pub fn forward(&self, x: &Tensor, options: &SequenceOptions) -> Result<Output> {
        let shapes = self.shapes_of(x)?;
        let sequence = Sequence::read(options, &shapes)?;
        let w = self.parameters.w();
        on_host([("x", x), ("w", w)])?;
        let mask = padding_mask(&shapes, sequence.lengths.as_deref().filter(|_| w.track_op()))?;
        // One large product: [B·T, I] [I, Gx·N·D].
        let wx = x.contiguous()?.apply_op2(w, Product::new(shapes.wx().as_slice(), mask))?;
        let (r, b) = self.parameters.recurrent()?;
        self.rnn.differentiable(&wx, &r, &b, &shapes, sequence)
    }

    /// Packs the parameters once for inference. See [`FrozenLayer`].
    ///
    /// # Errors
    /// If the parameters have incompatible element types, or memory runs out.
    pub fn freeze(&self) -> Result<FrozenLayer> {
        let LayerSize { heads, head_dim, .. } = self.size;
        let shapes =
            self.rnn.problem([1, 1], heads, head_dim).shapes::<C>().map_err(Error::wrap)?;
        let w = self.parameters.w();
        let (r, b) = self.parameters.recurrent()?;
        let frozen = self.rnn.freeze_flat(&r, &b, w.dtype(), &shapes)?;
        FrozenLayer::new(frozen, w, [C::GX, heads, head_dim])
    }

    fn shapes_of(&self, x: &Tensor) -> Result<Shapes> {
        let LayerSize { input, heads, head_dim } = self.size;
        let &[outer, inner, features] = x.dims() else { return Err(self.wrong_shape(x)) };
        if features != input {
            return Err(self.wrong_shape(x));
        }
        self.rnn.problem([outer, inner], heads, head_dim).shapes::<C>().map_err(Error::wrap)
    }

    fn wrong_shape(&self, x: &Tensor) -> Error {
        let (got, order, input) = (x.dims(), self.rnn.order(), self.size.input);
        Error::msg(format!("x: got shape {got:?}, wanted [{order}, {input}]"))
    }

    /// Returns the recurrence and its options.
    #[must_use]
    pub fn rnn(&self) -> &Rnn<C> {
        &self.rnn
    }

    /// Returns the parameters in flashrnn's order. For a layer made by
    /// [`from_torch`](RnnLayer::from_torch), `r` and `b` are copies with the current values.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn weights(&self) -> Result<Weights> {
        let LayerSize { heads, head_dim, .. } = self.size;
        let (r, b) = self.parameters.recurrent()?;
        Ok(Weights {
            w: self.parameters.w().clone(),
            r: r.reshape((C::GR, heads, head_dim, head_dim))?,
            b: b.reshape((C::G, heads, head_dim))?,
        })
    }
}

impl<C: FromTorch> RnnLayer<C> {
    /// Makes a layer from the parameters of one layer and direction of PyTorch's `nn.LSTM`,
    /// `nn.GRU` or `nn.RNN`, under PyTorch's names: `weight_ih_l0`, `weight_hh_l0`, and either both
    /// `bias_ih_l0` and `bias_hh_l0` or neither, as with `bias=False`. The variables keep PyTorch's
    /// order, so that PyTorch can load them after training.
    ///
    /// `suffix` is the end of PyTorch's names: `l0`, `l1`, and so on, or `l0_reverse` for the
    /// second direction of a bidirectional layer, which needs an `rnn` with
    /// [`Options::reverse`](flashrnn::Options). Without `_reverse`, either direction is allowed.
    /// `input` is PyTorch's `input_size` (for an upper layer, the width of the layer below), and
    /// `hidden` is its `hidden_size`.
    ///
    /// If `vb` creates variables, such as that of an empty `VarMap`, it initialises both weights
    /// and both biases like PyTorch, uniform in ±1/√hidden.
    ///
    /// # Errors
    /// If a weight or one of the two biases is missing or has the wrong shape, if the suffix names
    /// the reverse direction but `rnn` runs forwards, or if a size is 0.
    pub fn from_torch(
        rnn: Rnn<C>,
        input: usize,
        hidden: usize,
        suffix: &str,
        vb: VarBuilder,
    ) -> Result<Self> {
        let size = LayerSize { input, heads: 1, head_dim: hidden };
        size.check()?;
        if suffix.ends_with("_reverse") && !rnn.options().reverse {
            return Err(Error::msg(format!(
                "suffix {suffix} names weights of the reverse direction, but the recurrence runs \
                 forwards; give it Options {{ reverse: true, .. }}"
            )));
        }
        let parameters = Parameters::Torch(TorchWeights::find::<C>(input, hidden, suffix, &vb)?);
        Ok(Self { rnn, size, parameters })
    }
}
