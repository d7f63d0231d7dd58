//! A recurrent layer with its parameters: the input product W, the recurrence R and the biases.

use candle_core::{Error, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use flashrnn::{Cell, CellSizes, Shapes};

use crate::host::{check, on_host};
use crate::join::concat;
use crate::product::{Product, inside};
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
    /// `D`, the number of units of a head.
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
    /// `[Gx·N·D, I]`, the input product: reshape `x Wᵀ` to `[B, T, Gx, N, D]`.
    pub w: Tensor,
    /// `[Gr, N, D_out, D_in]`
    pub r: Tensor,
    /// `[G, N, D]`
    pub b: Tensor,
}

/// A recurrent layer: `wx = W x`, then [`Rnn::forward`].
///
/// | parameter | shape | made new as |
/// |---|---|---|
/// | `w` | `[Gx·N·D, I]` | uniform in ±1/√I |
/// | `r` | `[Gr, N, D_out, D_in]` | uniform in ±1/√D |
/// | `b_NAME`, one for each gate of the cell | `[N, D]` | 0; for the forget gate `f` 1 |
///
/// The biases are named after [`Cell::GATES`]: `b_i`, `b_f`, `b_z`, `b_o` for LSTM and sLSTM, `b_g`
/// for Elman, and for GRU `b_n_h`, `b_r`, `b_z`, `b_n_x`, where `b_n_h` is PyTorch's b_hn, inside
/// the reset gate, and `b_n_x` its b_in. A forget bias of 1 lets a new network remember.
///
/// The layer reads its parameters on every call, so an optimiser that changes them changes the
/// layer.
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
        /// `[N, D]` of each gate, or `[G, N, D]` of all
        b: Vec<Tensor>,
    },
    /// In PyTorch's.
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

    /// r and b as they are now, of as many elements as the shapes say.
    fn recurrent(&self) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Own { r, b, .. } => Ok((r.clone(), flat(b)?)),
            Self::Torch(torch) => Ok((torch.r()?, torch.b()?)),
        }
    }
}

/// Puts tensors one after the other.
fn flat(tensors: &[Tensor]) -> Result<Tensor> {
    let Some((first, others)) = tensors.split_first() else {
        return Err(Error::msg("flashrnn: a layer without biases"));
    };
    others.iter().try_fold(first.clone(), |joined, tensor| concat(&joined, tensor))
}

impl<C: Cell> RnnLayer<C> {
    /// Finds the parameters in `vb`, or makes them new where `vb` does.
    ///
    /// # Errors
    /// Where a size is 0, or a parameter is missing or of another shape.
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

    /// Makes a layer from weights that are at hand, shaped as [`Weights`] says. Where they are
    /// variables, or computed from some, gradients reach those.
    ///
    /// # Errors
    /// Where shapes contradict each other or the cell, or a size is 0.
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
    /// `h` in the result is `[B, T, N, D]`; `h.flatten_from(2)` makes it `[B, T, N·D]`, the next
    /// layer's input.
    ///
    /// # Errors
    /// As [`Rnn::forward`].
    pub fn forward(&self, x: &Tensor, options: &SequenceOptions) -> Result<Output> {
        let shapes = self.shapes_of(x)?;
        let sequence = Sequence::read(options, &shapes)?;
        let w = self.parameters.w();
        on_host([("x", x), ("w", w)])?;
        let inside = inside(&shapes, sequence.lengths.as_deref().filter(|_| w.track_op()))?;
        // One large product: [B·T, I] [I, Gx·N·D].
        let wx = x.contiguous()?.apply_op2(w, Product::new(shapes.wx().as_slice(), inside))?;
        let (r, b) = self.parameters.recurrent()?;
        self.rnn.differentiable(&wx, &r, &b, &shapes, sequence)
    }

    /// Packs the parameters once, for inference: see [`FrozenLayer`].
    ///
    /// # Errors
    /// Where the parameters' types don't go together, or memory runs out.
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

    /// Returns the parameters in flashrnn's order. With a layer in PyTorch's order `r` and `b` are
    /// computed from its parameters now, and do not follow them.
    ///
    /// # Errors
    /// Where memory runs out.
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
    /// Makes a layer of the parameters of one layer and direction of PyTorch's `nn.LSTM`, `nn.GRU`
    /// or `nn.RNN`, under PyTorch's names: `weight_ih_l0`, `weight_hh_l0`, and either both of
    /// `bias_ih_l0` and `bias_hh_l0` or none, as with `bias=False`. Its variables stay in PyTorch's
    /// order, so that what is trained can be loaded there.
    ///
    /// `suffix` is what PyTorch's names end in: `l0`, `l1`, …, and `l0_reverse` for the other
    /// direction of a bidirectional layer, which takes an `rnn` with
    /// [`Options::reverse`](flashrnn::Options). Without `_reverse`, both directions are allowed.
    /// `input` and `hidden` are `input_size` (of a later layer, the width of the one below) and
    /// `hidden_size`.
    ///
    /// A `vb` that makes variables, such as that of an empty `VarMap`, makes them as PyTorch does:
    /// weights and both biases, uniform in ±1/√hidden.
    ///
    /// # Errors
    /// Where a weight, or one of two biases, is missing or of another shape; where the suffix names
    /// the reverse direction, but `rnn` runs forwards; where a size is 0.
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
                "suffix {suffix} names the weights of the reverse direction, but the recurrence runs forwards; give it \
                 Options {{ reverse: true, .. }}"
            )));
        }
        let parameters = Parameters::Torch(TorchWeights::find::<C>(input, hidden, suffix, &vb)?);
        Ok(Self { rnn, size, parameters })
    }
}
