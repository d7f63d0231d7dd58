//! The module: layers of a cell, in one or two directions, with parameters.

use candle_core::{Error, ModuleT, Result, Tensor};
use candle_nn::VarBuilder;
use flashrnn::{AnyBackend, Cell, CellSizes};

use crate::config::LayerSize;
use crate::layer::Layer;
use crate::lookup::reason;
use crate::parameters::Parameters;
use crate::stack::Stack;
use crate::torch::{TorchWeights, check_config};
use crate::{FromTorch, FrozenRnn, Recurrence, RnnConfig, RnnOutput, SequenceOptions, Weights};

/// Layers of the cell `C`, with their parameters, for training.
///
/// [`Lstm`], [`Gru`], [`Elman`] and [`Slstm`] are the modules of the built-in cells. For a cell of
/// your own, use [`Rnn::with_cell`].
///
/// The input is `x [B, T, I]` and the output `h [B, T, N·D]`, or `[B, T, 2·N·D]` if the module is
/// bidirectional. With [`Layout::TimeMajor`](flashrnn::Layout), both start with `T, B`. `N·D` is
/// `hidden`, the number of units.
///
/// ```
/// use candle_core::{DType, Device, ModuleT, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use flashrnn_candle::{Lstm, RnnConfig, SequenceOptions};
///
/// # fn main() -> candle_core::Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let config = RnnConfig { layers: 2, bidirectional: true, ..RnnConfig::default() };
/// let lstm = Lstm::new(8, 32, config, vb.pp("lstm"))?;
///
/// let x = Tensor::randn(0f32, 1.0, (3, 20, 8), &Device::Cpu)?; // [B, T, I]
/// let h = lstm.forward_t(&x, false)?;
/// assert_eq!(h.dims(), [3, 20, 64]);
///
/// // Rows of 20, 5 and 12 steps, and the state in which each ends.
/// let lengths = Tensor::new(&[20u32, 5, 12], &Device::Cpu)?;
/// let options = SequenceOptions { lengths: Some(&lengths), ..SequenceOptions::default() };
/// let out = lstm.forward(&x, &options, false)?;
/// assert_eq!(out.last.dims(), [2, 4, 3, 1, 32]); // [S, L, B, N, D]
/// # Ok(())
/// # }
/// ```
///
/// # Parameters
/// [`Rnn::new`] and [`Rnn::with_cell`] use these names and shapes, where `l0` is the first layer
/// and `l0_reverse` its backward direction:
///
/// | parameter | shape | initial value |
/// |---|---|---|
/// | `w_l0` | `[Gx·N·D, I]` | uniform in ±1/√I |
/// | `r_l0` | `[Gr, N, D_out, D_in]` | uniform in ±1/√D |
/// | `b_NAME_l0`, one per gate of the cell | `[N, D]` | 0; 1 for the forget gate `f` |
///
/// The biases are named after [`Cell::GATES`]: `b_i`, `b_f`, `b_z`, `b_o` for LSTM and sLSTM, `b_g`
/// for Elman, and `b_n_h`, `b_r`, `b_z`, `b_n_x` for GRU, where `b_n_h` is PyTorch's b_hn, inside
/// the reset gate, and `b_n_x` its b_in. A forget bias of 1 helps a new network to remember. In
/// layers above the first, `I` is the width of the output below.
///
/// [`Rnn::from_torch`] uses PyTorch's names, shapes and initial values instead.
///
/// The module reads its parameters on every call, so it follows an optimiser that updates them.
/// [`Rnn::freeze`] packs them once, for inference.
#[derive(Clone, Debug)]
pub struct Rnn<C> {
    pub(crate) stack: Stack<Layer<C>>,
}

/// LSTM layers.
pub type Lstm = Rnn<flashrnn::Lstm>;
/// GRU layers.
pub type Gru = Rnn<flashrnn::Gru>;
/// Elman layers: PyTorch's `nn.RNN` with tanh.
pub type Elman = Rnn<flashrnn::Elman>;
/// sLSTM layers.
pub type Slstm = Rnn<flashrnn::Slstm>;

impl<C: Cell + Default> Rnn<C> {
    /// Makes a module for inputs of `input` features, with `hidden` units per layer and direction.
    /// Gets the parameters from `vb`, which creates them if it is backed by a `VarMap` without
    /// them.
    ///
    /// # Errors
    /// If a size is 0, `hidden` is not a multiple of the heads, the configuration is invalid, a
    /// parameter is missing or has the wrong shape, or `vb` has parameters that the configuration
    /// leaves out (more layers, a second direction, biases).
    pub fn new(input: usize, hidden: usize, config: RnnConfig, vb: VarBuilder) -> Result<Self> {
        Self::with_cell(C::default(), input, hidden, config, vb)
    }
}

impl<C: Cell> Rnn<C> {
    /// Does what [`Rnn::new`] does, for any cell.
    ///
    /// # Errors
    /// The same as [`Rnn::new`].
    pub fn with_cell(
        cell: C,
        input: usize,
        hidden: usize,
        config: RnnConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        Parameters::check_leftover::<C>(&config, &vb)?;
        Self::build(cell, input, hidden, config, |size, _, suffix| {
            Parameters::own::<C>(size, config.bias, suffix, &vb)
        })
    }

    /// Makes a module from existing weights, one entry per layer and direction in the order of
    /// [`RnnOutput::last`]. If they are variables or computed from variables, gradients flow back
    /// to those variables. [`RnnConfig::bias`] has no effect, as `b` is given.
    ///
    /// # Errors
    /// If the number of entries is not that of layers and directions, the shapes contradict each
    /// other, the cell or the configuration, or the configuration is invalid.
    pub fn from_weights(cell: C, config: RnnConfig, weights: &[Weights]) -> Result<Self> {
        let wanted = config.layers * config.directions();
        let (Some(first), true) = (weights.first(), weights.len() == wanted) else {
            return Err(Error::msg(format!(
                "weights: got {} entries, wanted {wanted}, one per layer and direction",
                weights.len()
            )));
        };
        let (&[_, input], &[_, heads, head_dim, _]) = (first.w.dims(), first.r.dims()) else {
            return Err(Error::msg(format!(
                "weights: got w of shape {:?} and r of shape {:?}, wanted [Gx·N·D, I] and \
                 [Gr, N, D_out, D_in]",
                first.w.dims(),
                first.r.dims()
            )));
        };
        if heads != config.heads {
            return Err(Error::msg(format!(
                "r: got {heads} heads, wanted {} as in the configuration",
                config.heads
            )));
        }
        Self::build(cell, input, heads * head_dim, config, |size, index, suffix| {
            Parameters::existing::<C>(size, &weights[index])
                .map_err(|error| Error::msg(format!("weights of {suffix}: {}", reason(error))))
        })
    }

    /// Makes a module whose parameters are made by `make` from their size, index and suffix.
    fn build(
        cell: C,
        input: usize,
        hidden: usize,
        config: RnnConfig,
        make: impl Fn(LayerSize, usize, &str) -> Result<Parameters>,
    ) -> Result<Self> {
        config.check::<C>(input, hidden)?;
        let recurrence = Recurrence::new(cell);
        let mut layers = Vec::with_capacity(config.layers * config.directions());
        for index in 0..config.layers {
            let size = config.layer_size(input, hidden, index);
            for direction in 0..config.directions() {
                let suffix = format!("l{index}{}", ["", "_reverse"][direction]);
                let parameters = make(size, layers.len(), &suffix)?;
                let recurrence = recurrence.clone().with(config.direction_options(direction));
                layers.push(Layer { recurrence, size, parameters });
            }
        }
        let state = [C::S, config.heads, hidden / config.heads];
        Ok(Self { stack: Stack { config, layers, state } })
    }

    /// Returns this module with its recurrences on `backend`, for tensors on the CPU. Tensors of
    /// CUDA devices need the feature `candle-cuda` instead, and do not use `backend`.
    #[must_use]
    pub fn on(mut self, backend: &AnyBackend) -> Self {
        let layers = &mut self.stack.layers;
        // Made once, because the layers share its plans.
        if let Some(moved) = layers.first().map(|layer| layer.recurrence.moved(backend)) {
            for Layer { recurrence, .. } in layers {
                *recurrence = moved.clone().with(*recurrence.options());
            }
        }
        self
    }

    /// Runs the module over `x [B, T, I]` (or time-major). `train` turns dropout on.
    ///
    /// Every tensor of the result is differentiable with respect to the parameters, `x` and `s0`.
    ///
    /// # Errors
    /// If a tensor has the wrong shape or type or is on another device than the others, a length is
    /// outside 0 to T (on the CPU), or memory runs out.
    pub fn forward(&self, x: &Tensor, options: &SequenceOptions, train: bool) -> Result<RnnOutput> {
        self.stack.forward(x, options, train, Layer::forward)
    }

    /// Packs the parameters once for inference, with an `x` of their type. See [`FrozenRnn`].
    ///
    /// # Errors
    /// If the parameters have incompatible element types, or memory runs out.
    pub fn freeze(&self) -> Result<FrozenRnn> {
        Ok(FrozenRnn::new(self.stack.try_map(Layer::freeze)?))
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &RnnConfig {
        &self.stack.config
    }

    /// Returns the parameters in flashrnn's order, one entry per layer and direction in the order
    /// of [`RnnOutput::last`]. For a module made by [`from_torch`](Rnn::from_torch), `r` and `b`
    /// are copies with the current values.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn weights(&self) -> Result<Vec<Weights>> {
        self.stack.layers.iter().map(Layer::weights).collect()
    }
}

impl<C: FromTorch> Rnn<C> {
    /// Makes a module over the parameters of PyTorch's `nn.LSTM`, `nn.GRU` or `nn.RNN`, under
    /// PyTorch's names: `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, their
    /// `_reverse` and those of the layers above. `input` and `hidden` are PyTorch's `input_size`
    /// and `hidden_size`. The parameters keep PyTorch's order, so that PyTorch can load them after
    /// training. [`load_variables`](crate::load_variables) loads a file for training, with an
    /// example.
    ///
    /// If `vb` creates variables, it initialises all of them like PyTorch, uniform in ±1/√hidden.
    /// A module with PyTorch's `bias=False` needs [`RnnConfig::bias`] `false`. Weights do not say
    /// which nonlinearity an `nn.RNN` has; it must be tanh.
    ///
    /// # Errors
    /// If a parameter is missing or has the wrong shape, `vb` has parameters that the configuration
    /// leaves out (more layers, a second direction, biases, projections), `heads` is not 1, or the
    /// configuration is invalid.
    pub fn from_torch(
        input: usize,
        hidden: usize,
        config: RnnConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        check_config(&config, &vb)?;
        Self::build(C::default(), input, hidden, config, |size, _, suffix| {
            Ok(Parameters::Torch(TorchWeights::find::<C>(size, config.bias, suffix, &vb)?))
        })
    }
}

impl<C: Cell> ModuleT for Rnn<C> {
    /// Returns [`RnnOutput::h`] for `x [B, T, I]` (or time-major).
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        Ok(self.forward(x, &SequenceOptions::default(), train)?.h)
    }
}
