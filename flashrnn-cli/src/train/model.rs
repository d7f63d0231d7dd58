//! The network: an embedding, recurrent layers with residual connections, and an output layer.
//!
//! ```text
//! x = embedding[token]                      [B, T, N·D]
//! x = x + dropout(rnn(norm(x)))             for each layer
//! logits = head(dropout(norm(x)))           [B, T, V]
//! ```
//!
//! `norm` is an RMS norm: it divides by the root mean square and multiplies by a scale per feature.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{D, DType, Device, Error, Result, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Embedding, Init, Linear, Module, VarBuilder};
use flashrnn::{AnyBackend, Cell};
use flashrnn_candle::{Rnn, RnnConfig, RnnOutput, SequenceOptions};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::choice::{CellName, with_cell};

/// The sizes of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub cell: CellName,
    pub layers: usize,
    /// `N`
    pub heads: usize,
    /// `D`
    pub head_dim: usize,
    /// `V`
    pub vocabulary: usize,
}

impl Sizes {
    /// Returns `N·D`, the width of every layer.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// A recurrent layer of any cell.
trait Recurrent {
    fn forward(&self, x: &Tensor, options: &SequenceOptions) -> Result<RnnOutput>;
}

impl<C: Cell> Recurrent for Rnn<C> {
    fn forward(&self, x: &Tensor, options: &SequenceOptions) -> Result<RnnOutput> {
        // A module of one layer has no dropout of its own.
        Rnn::forward(self, x, options, false)
    }
}

/// The state that the network carries between calls: `[S, 1, B, N, D]` for each layer, or `None`
/// before the first call.
pub type State = Vec<Option<Tensor>>;

pub struct LanguageModel {
    embedding: Embedding,
    /// The scale of the norm `[N·D]` and the recurrent layer, for each layer.
    layers: Vec<(Tensor, Box<dyn Recurrent>)>,
    /// `[N·D]`
    norm: Tensor,
    head: Linear,
}

impl LanguageModel {
    /// Gets the parameters from `vb`, which may create them.
    pub fn new(sizes: &Sizes, backend: &AnyBackend, vb: &VarBuilder) -> Result<Self> {
        let width = sizes.width();
        let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
        let table = vb.get_with_hints((sizes.vocabulary, width), "embedding", normal)?;
        let scale = |vb: &VarBuilder| vb.get_with_hints(width, "norm", Init::Const(1.0));
        let config = RnnConfig { heads: sizes.heads, ..RnnConfig::default() };
        let mut layers = Vec::with_capacity(sizes.layers);
        for i in 0..sizes.layers {
            let vb = vb.pp(format!("layers.{i}"));
            let layer: Box<dyn Recurrent> = with_cell!(sizes.cell, |cell| {
                Box::new(Rnn::with_cell(cell, width, width, config, vb.clone())?.on(backend))
            });
            layers.push((scale(&vb)?, layer));
        }
        let bound = 1.0 / (width as f64).sqrt();
        let weight = vb.get_with_hints(
            (sizes.vocabulary, width),
            "head.weight",
            Init::Uniform { lo: -bound, up: bound },
        )?;
        let bias = vb.get_with_hints(sizes.vocabulary, "head.bias", Init::Const(0.0))?;
        Ok(Self {
            embedding: Embedding::new(table, width),
            layers,
            norm: scale(vb)?,
            head: Linear::new(weight, Some(bias)),
        })
    }

    /// Returns the initial state.
    pub fn initial_state(&self) -> State {
        vec![None; self.layers.len()]
    }

    /// Reads `tokens [B, T]`, starting from `state`. Returns logits `[B·T, V]` for the character
    /// that follows each token, and the detached final state. `resets` is `[B, T]`.
    pub fn forward(
        &self,
        tokens: &Tensor,
        state: &State,
        resets: Option<&Tensor>,
        dropout: &mut Dropout,
    ) -> Result<(Tensor, State)> {
        let mut x = self.embedding.forward(tokens)?;
        let mut after = Vec::with_capacity(self.layers.len());
        for ((scale, layer), s0) in self.layers.iter().zip(state) {
            let options = SequenceOptions { s0: s0.as_ref(), resets, ..SequenceOptions::default() };
            let out = layer.forward(&norm(&x, scale)?, &options)?;
            x = (x + dropout.apply(&out.h)?)?;
            after.push(Some(out.last.detach()));
        }
        let x = dropout.apply(&norm(&x, &self.norm)?)?;
        Ok((self.head.forward(&x.flatten_to(1)?)?, after))
    }
}

/// Computes `x / √(mean x² + ε) · scale` over the last axis.
fn norm(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + 1e-6)?.sqrt()?)?.broadcast_mul(scale)
}

/// Dropout that uses one mask for all time steps of a row. It has its own seeded generator, so that
/// runs are reproducible.
pub struct Dropout {
    rate: f64,
    rng: StdRng,
}

impl Dropout {
    /// Makes dropout that zeroes a fraction `rate` of the features, where 0 <= rate < 1.
    pub fn new(rate: f64, seed: u64) -> Self {
        Self { rate, rng: StdRng::seed_from_u64(seed) }
    }

    /// Makes dropout that keeps every feature.
    pub fn off() -> Self {
        Self::new(0.0, 0)
    }

    /// Zeroes features of `x [B, T, F]`, and scales the others to preserve the mean.
    fn apply(&mut self, x: &Tensor) -> Result<Tensor> {
        if self.rate == 0.0 {
            return Ok(x.clone());
        }
        let (batch, _, features) = x.dims3()?;
        let keep = (1.0 / (1.0 - self.rate)) as f32;
        let mut draw = || if self.rng.random::<f64>() < self.rate { 0.0 } else { keep };
        let mask: Vec<f32> = (0..batch * features).map(|_| draw()).collect();
        x.broadcast_mul(&Tensor::from_vec(mask, (batch, 1, features), x.device())?)
    }
}

/// Creates named parameters from a seed. (candle's random numbers on the CPU can't be seeded.)
#[derive(Clone)]
pub struct Parameters {
    created: Arc<Mutex<Created>>,
}

struct Created {
    /// Ordered by name, so that sums over all parameters are reproducible.
    vars: BTreeMap<String, Var>,
    rng: StdRng,
}

impl Parameters {
    pub fn seeded(seed: u64) -> Self {
        let created = Created { vars: BTreeMap::new(), rng: StdRng::seed_from_u64(seed) };
        Self { created: Arc::new(Mutex::new(created)) }
    }

    /// Returns a builder that creates parameters on first use.
    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, Device::Cpu)
    }

    /// Returns every parameter with its name, ordered by name.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.with(|created| {
            created.vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
        })
    }

    /// Returns a builder that provides the current values as constants.
    pub fn frozen(&self) -> VarBuilder<'static> {
        let tensors =
            self.all().into_iter().map(|(name, var)| (name, var.as_tensor().detach())).collect();
        VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
    }

    fn with<T>(&self, f: impl FnOnce(&mut Created) -> T) -> T {
        f(&mut self.created.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl SimpleBackend for Parameters {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        self.with(|created| {
            if !created.vars.contains_key(name) {
                let data = draw(&mut created.rng, shape.elem_count(), init)?;
                let tensor = Tensor::from_vec(data, shape.clone(), device)?.to_dtype(dtype)?;
                created.vars.insert(name.to_owned(), Var::from_tensor(&tensor)?);
            }
            match created.vars.get(name) {
                Some(var) if *var.shape() == shape => Ok(var.as_tensor().clone()),
                _ => Err(Error::msg(format!(
                    "parameter {name} exists, but its shape is not {shape:?}"
                ))),
            }
        })
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        let found = self.with(|created| created.vars.get(name).map(|var| var.as_tensor().clone()));
        found.ok_or_else(|| Error::msg(format!("there is no parameter {name}")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.with(|created| created.vars.contains_key(name))
    }
}

/// Draws `len` numbers from the distribution `init`.
fn draw(rng: &mut StdRng, len: usize, init: Init) -> Result<Vec<f32>> {
    match init {
        Init::Const(value) => Ok(vec![value as f32; len]),
        Init::Uniform { lo, up } => Ok((0..len).map(|_| rng.random_range(lo..up) as f32).collect()),
        Init::Randn { mean, stdev } => {
            Ok((0..len).map(|_| (mean + stdev * normal(rng)) as f32).collect())
        }
        Init::Kaiming { .. } => {
            Err(Error::msg("no parameter of this model uses Kaiming initialisation"))
        }
    }
}

/// Draws from the standard normal distribution, by the Box–Muller transform.
fn normal(rng: &mut impl RngCore) -> f64 {
    // 1 - u is above 0, so its logarithm is finite.
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use flashrnn::Cpu;

    use super::*;

    const SIZES: Sizes =
        Sizes { cell: CellName::Slstm, layers: 2, heads: 2, head_dim: 3, vocabulary: 7 };

    #[test]
    fn a_seed_reproduces_the_network() -> Result<()> {
        let make = |seed| -> Result<Vec<f32>> {
            let parameters = Parameters::seeded(seed);
            let model =
                LanguageModel::new(&SIZES, &AnyBackend::Cpu(Cpu::new()), &parameters.builder())?;
            let tokens = Tensor::new(&[[0u32, 1, 2], [6, 5, 4]], &Device::Cpu)?;
            let (logits, state) =
                model.forward(&tokens, &model.initial_state(), None, &mut Dropout::off())?;
            assert_eq!(logits.dims(), [6, 7]);
            assert_eq!(state.len(), 2);
            logits.flatten_all()?.to_vec1()
        };
        assert_eq!(make(3)?, make(3)?);
        assert_ne!(make(3)?, make(4)?);
        Ok(())
    }

    #[test]
    fn reading_a_text_in_two_parts_agrees_with_one() -> Result<()> {
        let parameters = Parameters::seeded(1);
        let model =
            LanguageModel::new(&SIZES, &AnyBackend::Cpu(Cpu::new()), &parameters.builder())?;
        let model_frozen =
            LanguageModel::new(&SIZES, &AnyBackend::Cpu(Cpu::new()), &parameters.frozen())?;
        let tokens = Tensor::new(&[[0u32, 1, 2, 3, 4]], &Device::Cpu)?;
        let off = &mut Dropout::off();
        let (whole, _) = model.forward(&tokens, &model.initial_state(), None, off)?;
        let (first, state) =
            model_frozen.forward(&tokens.narrow(1, 0, 2)?, &model.initial_state(), None, off)?;
        let (second, _) = model_frozen.forward(&tokens.narrow(1, 2, 3)?, &state, None, off)?;
        let apart =
            (whole - Tensor::cat(&[first, second], 0)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
        // Matrix products of a different size may sum in a different order. Logits are of the order
        // of 1.
        assert!(apart < 1e-5, "{apart}");
        Ok(())
    }

    #[test]
    fn dropout_keeps_the_mean() -> Result<()> {
        let x = Tensor::ones((20, 3, 200), DType::F32, &Device::Cpu)?;
        let dropped = Dropout::new(0.25, 1).apply(&x)?;
        let mean = dropped.mean_all()?.to_scalar::<f32>()?;
        // With 4000 independent draws, the standard deviation of the mean is below 0.01.
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        let spread = (dropped.narrow(1, 0, 1)? - dropped.narrow(1, 2, 1)?)?.abs()?.max_all()?;
        assert_eq!(spread.to_scalar::<f32>()?, 0.0);
        Ok(())
    }
}
