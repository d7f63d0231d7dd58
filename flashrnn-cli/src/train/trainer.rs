//! The training loop: optimiser, learning rate schedule, validation, and the best checkpoint.

use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use flashrnn::AnyBackend;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::checkpoint;
use super::model::{Dropout, LanguageModel, Parameters, Sizes, State};
use super::progress::Progress;
use super::report::{Metrics, Report};
use super::text::{Batches, Corpus, Vocabulary};

/// The hyperparameters of training.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub batch: usize,
    pub seq_len: usize,
    pub steps: usize,
    /// The peak learning rate.
    pub lr: f64,
    pub dropout: f64,
    pub seed: u64,
}

/// The maximum norm of the gradient over all parameters. Larger gradients are scaled down.
const MAX_GRADIENT_NORM: f64 = 1.0;
/// The weight decay of matrices. Scales and biases do not decay.
const WEIGHT_DECAY: f64 = 0.1;
/// The number of validations in a run, besides the one before the first step.
const VALIDATIONS: usize = 25;

/// The result of training.
pub struct Trained {
    pub parameters: usize,
    pub seconds: f64,
}

/// Trains a network. `report` saves the checkpoint with the lowest validation loss.
pub fn train(
    recipe: &Recipe,
    sizes: &Sizes,
    vocabulary: &Vocabulary,
    corpus: &Corpus,
    backend: &AnyBackend,
    report: &mut Report,
    progress: &mut Progress,
) -> Result<Trained> {
    let parameters = Parameters::seeded(recipe.seed);
    let model = LanguageModel::new(sizes, backend, &parameters.builder())?;
    let named = parameters.all();
    let mut optimizer = Adam::new(&named)?;
    let mut dropout = Dropout::new(recipe.dropout, recipe.seed.wrapping_add(1));
    let mut rng = StdRng::seed_from_u64(recipe.seed.wrapping_add(2));
    let batches = Batches::new(corpus.train(), recipe.batch, recipe.seq_len, &mut rng);
    let validate = || -> Result<f64> {
        let frozen = LanguageModel::new(sizes, backend, &parameters.frozen())?;
        bits_per_character(&frozen, corpus, recipe)
    };

    let start = Instant::now();
    report.started(Metrics {
        step: 0,
        train_bits_per_character: None,
        validation_bits_per_character: validate()?,
        learning_rate: None,
        characters_per_second: None,
        seconds: start.elapsed().as_secs_f64(),
    });
    let mut state = model.initial_state();
    let mut sum_of_bits = 0.0;
    let mut since = (0, Instant::now()); // the step and time of the last validation
    for (step, batch) in (1..=recipe.steps).zip(batches) {
        let shape = (recipe.batch, recipe.seq_len);
        let inputs = Tensor::from_vec(batch.inputs, shape, &Device::Cpu)?;
        let targets = Tensor::from_vec(batch.targets, recipe.batch * recipe.seq_len, &Device::Cpu)?;
        let resets = Tensor::from_vec(batch.resets, shape, &Device::Cpu)?;
        let (logits, after) = model.forward(&inputs, &state, Some(&resets), &mut dropout)?;
        let loss = candle_nn::loss::cross_entropy(&logits, &targets)?;
        let lr = learning_rate(recipe, step);
        optimizer.step(&named, loss.backward()?, lr)?;
        state = after;
        let bits = f64::from(loss.to_scalar::<f32>()?) / std::f64::consts::LN_2;
        if !bits.is_finite() {
            bail!(
                "the loss became {bits} at step {step}, wanted a finite number; \
                 try an --lr below {}",
                recipe.lr
            );
        }
        sum_of_bits += bits;
        progress.step(step, bits);

        if step % recipe.steps.div_ceil(VALIDATIONS) == 0 || step == recipe.steps {
            let (last_step, last_time) = since;
            let characters = ((step - last_step) * recipe.batch * recipe.seq_len) as f64;
            let line = Metrics {
                step,
                train_bits_per_character: Some(sum_of_bits / (step - last_step) as f64),
                learning_rate: Some(lr),
                characters_per_second: Some(characters / last_time.elapsed().as_secs_f64()),
                validation_bits_per_character: validate()?,
                seconds: start.elapsed().as_secs_f64(),
            };
            progress.validated(&line);
            report.validated(line, || checkpoint::serialize(sizes, vocabulary, &named))?;
            sum_of_bits = 0.0;
            since = (step, Instant::now());
        }
    }
    Ok(Trained {
        parameters: named.iter().map(|(_, var)| var.elem_count()).sum(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Returns the learning rate of a step: a linear warm-up to the peak over the first twentieth of
/// the steps, then a cosine decay to a twentieth of the peak.
fn learning_rate(recipe: &Recipe, step: usize) -> f64 {
    let warm_up = recipe.steps.div_ceil(20);
    if step <= warm_up {
        return recipe.lr * step as f64 / warm_up as f64;
    }
    let done = (step - warm_up) as f64 / (recipe.steps - warm_up) as f64;
    recipe.lr * (0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
}

/// AdamW with gradient clipping by norm, and weight decay on matrices only.
struct Adam {
    matrices: AdamW,
    vectors: AdamW,
}

impl Adam {
    fn new(named: &[(String, Var)]) -> Result<Self> {
        let (vectors, matrices): (Vec<_>, Vec<_>) =
            named.iter().cloned().partition(|(name, _)| is_vector(name));
        let make = |group: Vec<(String, Var)>, weight_decay| {
            let params = ParamsAdamW { beta2: 0.99, weight_decay, ..ParamsAdamW::default() };
            AdamW::new(group.into_iter().map(|(_, var)| var).collect(), params)
        };
        Ok(Self { matrices: make(matrices, WEIGHT_DECAY)?, vectors: make(vectors, 0.0)? })
    }

    fn step(&mut self, named: &[(String, Var)], mut grads: GradStore, lr: f64) -> Result<()> {
        let mut square = 0.0;
        for (_, var) in named {
            if let Some(grad) = grads.get(var) {
                square += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        let norm = square.sqrt();
        if norm > MAX_GRADIENT_NORM {
            for (_, var) in named {
                if let Some(grad) = grads.remove(var) {
                    grads.insert(var, (grad * (MAX_GRADIENT_NORM / norm))?);
                }
            }
        }
        for group in [&mut self.matrices, &mut self.vectors] {
            group.set_learning_rate(lr);
            group.step(&grads)?;
        }
        Ok(())
    }
}

/// Returns whether a parameter is a bias or a scale. Decides by name, since the recurrence's biases
/// `[N, D]` have two axes like matrices.
fn is_vector(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    last == "bias" || last == "norm" || last.starts_with("b_")
}

/// Returns the mean bits per character over the validation part.
///
/// The part is split into rows, which are read in one batch. Each row first reads up to `seq_len`
/// characters that precede its own, so that every character has a context, and counts exactly once.
pub fn bits_per_character(model: &LanguageModel, corpus: &Corpus, recipe: &Recipe) -> Result<f64> {
    let validation = corpus.validation();
    let context = corpus.context(recipe.seq_len);
    let all = [context, validation].concat();
    // Makes rows at least twice as long as the context that they read again, and no more rows than
    // in training.
    let rows = (validation.len() / (2 * context.len())).clamp(1, recipe.batch);
    let own = validation.len().div_ceil(rows);
    let row_len = context.len() + own; // of inputs, or of targets one position later
    let mut state: State = model.initial_state();
    let mut nats = 0.0;
    let mut begin = 0;
    // Position i of row j is character j·own + i of `all`; it predicts the next one.
    while begin < row_len - 1 {
        let len = recipe.seq_len.min(row_len - 1 - begin);
        let at = |j: usize, i: usize| j * own + begin + i;
        let token = |place: usize| all.get(place).copied().unwrap_or(0);
        let cells = || (0..rows).flat_map(|j| (0..len).map(move |i| (j, i)));
        let inputs: Vec<u32> = cells().map(|(j, i)| token(at(j, i))).collect();
        let targets: Vec<u32> = cells().map(|(j, i)| token(at(j, i) + 1)).collect();
        let inputs = Tensor::from_vec(inputs, (rows, len), &Device::Cpu)?;
        let targets = Tensor::from_vec(targets, (rows * len, 1), &Device::Cpu)?;
        let (logits, after) = model.forward(&inputs, &state, None, &mut Dropout::off())?;
        let logs: Vec<f32> = candle_nn::ops::log_softmax(&logits, 1)?
            .gather(&targets, 1)?
            .flatten_all()?
            .to_vec1()?;
        for ((j, i), log) in cells().zip(logs) {
            // Counts the row's own characters; the last row may have fewer.
            let own_character = begin + i + 1 >= context.len();
            if own_character && at(j, i) + 1 < all.len() {
                nats -= f64::from(log);
            }
        }
        state = after;
        begin += len;
    }
    Ok(nats / (validation.len() as f64 * std::f64::consts::LN_2))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use flashrnn::Cpu;

    use super::*;
    use crate::choice::CellName;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let recipe = Recipe { batch: 1, seq_len: 1, steps: 100, lr: 0.5, dropout: 0.0, seed: 0 };
        let rates: Vec<f64> = (1..=100).map(|step| learning_rate(&recipe, step)).collect();
        assert!(rates[..5].is_sorted() && rates[4..].is_sorted_by(|a, b| a >= b));
        // Allows for the rounding of a few products, 1e-16 each.
        assert!((rates[4] - 0.5).abs() < 1e-15 && (rates[99] - 0.025).abs() < 1e-15);
        for steps in [1, 2, 3] {
            assert!((1..=steps).all(|step| learning_rate(&Recipe { steps, ..recipe }, step) > 0.0));
        }
    }

    #[test]
    fn only_matrices_decay() -> Result<()> {
        let parameters = Parameters::seeded(1);
        let sizes = Sizes { cell: CellName::Gru, layers: 1, heads: 1, head_dim: 2, vocabulary: 3 };
        LanguageModel::new(&sizes, &AnyBackend::Cpu(Cpu::new()), &parameters.builder())?;
        let matrices: HashSet<String> = parameters
            .all()
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| !is_vector(name))
            .collect();
        let want =
            ["embedding", "head.weight", "layers.0.r_l0", "layers.0.w_l0"].map(str::to_owned);
        assert_eq!(matrices, HashSet::from(want));
        Ok(())
    }

    #[test]
    fn validation_counts_each_character_once() -> Result<()> {
        // An untrained output layer of zeros costs log2 V bits per character, however the text is
        // split.
        let sizes = Sizes { cell: CellName::Lstm, layers: 1, heads: 1, head_dim: 4, vocabulary: 8 };
        let parameters = Parameters::seeded(1);
        let model =
            LanguageModel::new(&sizes, &AnyBackend::Cpu(Cpu::new()), &parameters.builder())?;
        for (name, var) in parameters.all() {
            if name.starts_with("head") {
                var.set(&var.zeros_like()?)?;
            }
        }
        for characters in [23, 100, 499] {
            let tokens: Vec<u32> = (0..characters).map(|i| (i * i % 8) as u32).collect();
            for (seq_len, batch) in [(1, 1), (3, 4), (5, 100), (16, 2)] {
                let corpus = Corpus::new(tokens.clone(), seq_len)?;
                let recipe = Recipe { batch, seq_len, steps: 1, lr: 0.1, dropout: 0.0, seed: 0 };
                let bits = bits_per_character(&model, &corpus, &recipe)?;
                // Allows for the rounding of f32 logarithms, 6e-8 relative to 2.1.
                assert!((bits - 3.0).abs() < 1e-6, "{characters} {seq_len} {batch}: {bits}");
            }
        }
        Ok(())
    }
}
