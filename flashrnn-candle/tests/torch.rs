//! Tests modules in PyTorch's layout: that their weights mean the same as in candle-nn's LSTM and
//! GRU, that they train, and that errors name the parameter. (`vectors.rs` compares with PyTorch.)

use std::collections::HashMap;

use candle_core::{DType, Device, ModuleT, Result, Tensor};
use candle_nn::rnn::{GRUConfig, LSTMConfig, RNN, gru, lstm};
use candle_nn::{AdamW, Init, Linear, Module, Optimizer, VarBuilder, VarMap};
use flashrnn::{self as cells, Options};
use flashrnn_candle::{Elman, FromTorch, Gru, Lstm, Rnn, RnnConfig, SequenceOptions};

const INPUT: usize = 3;
const HIDDEN: usize = 5;

fn reverse() -> RnnConfig {
    let options = Options { reverse: true, ..Options::default() };
    RnnConfig { options, ..RnnConfig::default() }
}

fn bidirectional() -> RnnConfig {
    RnnConfig { bidirectional: true, ..RnnConfig::default() }
}

/// Returns random weights under PyTorch's names.
fn torch_weights(gates: usize, suffix: &str) -> Result<HashMap<String, Tensor>> {
    let make = |dims: &[usize]| Tensor::randn(0.0f64, 0.5, dims, &Device::Cpu);
    let rows = gates * HIDDEN;
    Ok(HashMap::from([
        (format!("weight_ih_{suffix}"), make(&[rows, INPUT])?),
        (format!("weight_hh_{suffix}"), make(&[rows, HIDDEN])?),
        (format!("bias_ih_{suffix}"), make(&[rows])?),
        (format!("bias_hh_{suffix}"), make(&[rows])?),
    ]))
}

fn builder(weights: HashMap<String, Tensor>) -> VarBuilder<'static> {
    VarBuilder::from_tensors(weights, DType::F64, &Device::Cpu)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a - b)?.abs()?.max_all()?.to_scalar()
}

/// Allows for f64 sums of eight terms in a different order.
const TOLERANCE: f64 = 1e-14;

#[test]
fn lstm_agrees_with_candle_nn() -> Result<()> {
    let vb = builder(torch_weights(4, "l0")?);
    let x = Tensor::randn(0.0f64, 1.0, (2, 7, INPUT), &Device::Cpu)?;
    let theirs = lstm(INPUT, HIDDEN, LSTMConfig::default(), vb.clone())?;
    let states = theirs.seq(&x)?;
    let ours = Lstm::from_torch(INPUT, HIDDEN, RnnConfig::default(), vb)?;
    let out = ours.forward(&x, &SequenceOptions::default(), false)?;
    assert!(largest_difference(&out.h, &theirs.states_to_tensor(&states)?)? < TOLERANCE);
    let last = &states[6];
    for (k, theirs) in [last.h(), last.c()].into_iter().enumerate() {
        let ours = out.last.get(k)?.squeeze(0)?.squeeze(1)?;
        assert!(largest_difference(&ours, theirs)? < TOLERANCE);
    }
    Ok(())
}

#[test]
fn gru_agrees_with_candle_nn() -> Result<()> {
    let vb = builder(torch_weights(3, "l0")?);
    let x = Tensor::randn(0.0f64, 1.0, (2, 7, INPUT), &Device::Cpu)?;
    let theirs = gru(INPUT, HIDDEN, GRUConfig::default(), vb.clone())?;
    let states = theirs.seq(&x)?.iter().map(|state| state.h().clone()).collect::<Vec<_>>();
    let ours = Gru::from_torch(INPUT, HIDDEN, RnnConfig::default(), vb)?.forward_t(&x, false)?;
    assert!(largest_difference(&ours, &Tensor::stack(&states, 1)?)? < TOLERANCE);
    Ok(())
}

#[test]
fn elman_agrees_with_its_equation() -> Result<()> {
    // A module in one direction that was trained on reversed sequences.
    let weights = torch_weights(1, "l0")?;
    let x = Tensor::randn(0.0f64, 1.0, (2, 4, INPUT), &Device::Cpu)?;
    let ours = Elman::from_torch(INPUT, HIDDEN, reverse(), builder(weights.clone()))?;
    let got = ours.forward_t(&x, false)?;
    // h = tanh(W_ih x + b_ih + W_hh h + b_hh), in reverse
    let get = |name: &str| weights[&format!("{name}_l0")].clone();
    let input = Linear::new(get("weight_ih"), Some(get("bias_ih")));
    let hidden = Linear::new(get("weight_hh"), Some(get("bias_hh")));
    let mut h = Tensor::zeros((2, HIDDEN), DType::F64, &Device::Cpu)?;
    for t in (0..4).rev() {
        let x = x.narrow(1, t, 1)?.squeeze(1)?;
        h = (input.forward(&x)? + hidden.forward(&h)?)?.tanh()?;
        assert!(largest_difference(&got.narrow(1, t, 1)?.squeeze(1)?, &h)? < TOLERANCE);
    }
    Ok(())
}

/// Returns the module's output for a fixed input.
fn output<C: FromTorch>(module: &Rnn<C>) -> Result<Tensor> {
    let x = Tensor::arange(0f64, 2.0 * 7.0 * INPUT as f64, &Device::Cpu)?.sin()?;
    module.forward_t(&x.reshape((2, 7, INPUT))?, true)
}

/// Trains a module over variables in PyTorch's layout, and checks their gradients.
fn trains<C: FromTorch>(gates: usize) -> Result<()> {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let rows = gates * HIDDEN;
    for (name, shape) in [("weight_ih_l0", &[rows, INPUT][..]), ("weight_hh_l0", &[rows, HIDDEN])] {
        vb.pp("rnn").get_with_hints(shape, name, Init::Randn { mean: 0.0, stdev: 0.4 })?;
    }
    for name in ["bias_ih_l0", "bias_hh_l0"] {
        vb.pp("rnn").get_with_hints(rows, name, Init::Randn { mean: 0.0, stdev: 0.4 })?;
    }
    let make = || Rnn::<C>::from_torch(INPUT, HIDDEN, RnnConfig::default(), vb.pp("rnn"));
    let module = make()?;
    let target = Tensor::full(0.3f64, (2, 7, HIDDEN), &Device::Cpu)?;
    let loss = |module: &Rnn<C>| candle_nn::loss::mse(&output(module)?, &target);
    let grads = loss(&module)?.backward()?;
    for (name, var) in map.data().lock().expect("no panic").iter() {
        let grad = grads.get(var).expect("every variable of the module has a gradient");
        assert_eq!(grad.dims(), var.dims());
        // Compares with the central difference along the gradient.
        let along = |step: f64| -> Result<f64> {
            let before = var.copy()?.detach();
            var.set(&(&before + (grad * step)?)?.detach())?;
            let loss = loss(&module)?.to_scalar::<f64>()?;
            var.set(&before)?;
            Ok(loss)
        };
        let squared = grad.sqr()?.sum_all()?.to_scalar::<f64>()?;
        let slope = (along(1e-4)? - along(-1e-4)?) / 2e-4;
        // The second-order term cancels, and the third is of the order of the step squared.
        assert!(
            (slope - squared).abs() <= 1e-5 * squared,
            "{} {name}: {slope} of {squared}",
            C::NAME
        );
    }

    let mut optimiser = AdamW::new_lr(map.all_vars(), 0.02)?;
    let before = loss(&module)?.to_scalar::<f64>()?;
    for _ in 0..60 {
        optimiser.backward_step(&loss(&module)?)?;
    }
    let after = loss(&module)?.to_scalar::<f64>()?;
    assert!(after < 0.2 * before, "{}: {before} to {after}", C::NAME);
    // A second module over the trained variables computes the same.
    assert_eq!(largest_difference(&output(&module)?, &output(&make()?)?)?, 0.0);
    Ok(())
}

#[test]
fn modules_of_variables_train() -> Result<()> {
    trains::<cells::Elman>(1)?;
    trains::<cells::Gru>(3)?;
    trains::<cells::Lstm>(4)
}

#[test]
fn new_variables_are_initialised_like_pytorch() -> Result<()> {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let hidden = 100;
    Gru::from_torch(INPUT, hidden, RnnConfig::default(), vb)?;
    let bound = 1.0 / (hidden as f32).sqrt();
    assert_eq!(map.all_vars().len(), 4, "both weights and both biases");
    for (name, var) in map.data().lock().expect("no panic").iter() {
        let largest = var.abs()?.max_all()?.to_scalar::<f32>()?;
        // The largest of at least 300 numbers is within 5 % of the bound, except once in 10⁶ runs.
        assert!(largest <= bound && largest > 0.95 * bound, "{name}: {largest} of {bound}");
    }
    Ok(())
}

#[test]
fn modules_without_biases() -> Result<()> {
    let mut weights = torch_weights(3, "l0")?;
    let config = RnnConfig { bias: false, ..RnnConfig::default() };
    fails::<cells::Gru>(&weights, config, "found parameter rnn.bias_ih_l0, but bias is false");
    weights.remove("bias_ih_l0");
    weights.remove("bias_hh_l0");
    fails::<cells::Gru>(
        &weights,
        RnnConfig::default(),
        "parameter rnn.bias_ih_l0, wanted with shape [15]: cannot find tensor rnn.bias_ih_l0; \
         found weight_ih_l0, weight_hh_l0",
    );
    let gru = Gru::from_torch(INPUT, HIDDEN, config, builder(weights))?;
    assert_eq!(gru.weights()?[0].b.abs()?.sum_all()?.to_scalar::<f64>()?, 0.0);
    Ok(())
}

/// Asserts that making a module from these weights is an error that says `wanted`.
#[track_caller]
fn fails<C: FromTorch>(weights: &HashMap<String, Tensor>, config: RnnConfig, wanted: &str) {
    let prefixed = weights.iter().map(|(name, value)| (format!("rnn.{name}"), value.clone()));
    let vb = builder(prefixed.collect()).pp("rnn");
    let error = Rnn::<C>::from_torch(INPUT, HIDDEN, config, vb).err();
    let text = error.map(|error| error.to_string()).unwrap_or_default();
    assert!(text.contains(wanted), "{text:?} does not contain {wanted:?}");
}

#[test]
fn parameters_that_do_not_fit_are_named() -> Result<()> {
    let one = torch_weights(4, "l0")?;
    let config = RnnConfig::default();
    let mut without = one.clone();
    without.remove("bias_hh_l0");
    fails::<cells::Lstm>(
        &without,
        config,
        "cannot find tensor rnn.bias_hh_l0; found weight_ih_l0, weight_hh_l0, bias_ih_l0",
    );
    fails::<cells::Gru>(
        &one,
        config,
        "parameter rnn.weight_ih_l0, wanted with shape [15, 3]: shape mismatch",
    );
    fails::<cells::Lstm>(&HashMap::new(), config, "found none of a PyTorch module");
    let two = RnnConfig { layers: 2, ..config };
    fails::<cells::Lstm>(&one, two, "parameter rnn.weight_ih_l1, wanted with shape [20, 5]");
    fails::<cells::Lstm>(&one, bidirectional(), "parameter rnn.weight_ih_l0_reverse, wanted");
    fails::<cells::Lstm>(&one, RnnConfig { heads: 5, ..config }, "heads is 5, wanted 1");
    Ok(())
}

#[test]
fn parameters_that_the_configuration_leaves_out_are_named() -> Result<()> {
    let with = |suffix: &str| -> Result<HashMap<String, Tensor>> {
        Ok(torch_weights(4, "l0")?.into_iter().chain(torch_weights(4, suffix)?).collect())
    };
    let config = RnnConfig::default();
    fails::<cells::Lstm>(&with("l1")?, config, "rnn.weight_ih_l1, but layers is 1");
    fails::<cells::Lstm>(
        &with("l0_reverse")?,
        config,
        "rnn.weight_ih_l0_reverse, but bidirectional is false",
    );
    let mut projected = torch_weights(4, "l0")?;
    projected.insert("weight_hr_l0".to_owned(), Tensor::zeros(1, DType::F64, &Device::Cpu)?);
    fails::<cells::Lstm>(&projected, config, "projections (proj_size) are not supported");
    assert!(Lstm::from_torch(INPUT, HIDDEN, bidirectional(), builder(with("l0_reverse")?)).is_ok());
    // A builder with parameters of every name.
    let zeros = VarBuilder::zeros(DType::F32, &Device::Cpu);
    assert!(Lstm::from_torch(INPUT, HIDDEN, config, zeros).is_ok());
    Ok(())
}
