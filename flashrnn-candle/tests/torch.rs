//! Tests layers in PyTorch's layout: that their weights mean the same as in candle-nn's LSTM and
//! GRU, and that the layers train.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rnn::{GRUConfig, LSTMConfig, RNN, gru, lstm};
use candle_nn::{AdamW, Init, Linear, Module, Optimizer, VarBuilder, VarMap};
use flashrnn::{Elman, Gru, Lstm, Options};
use flashrnn_candle::{FromTorch, Rnn, RnnLayer, SequenceOptions};

const INPUT: usize = 3;
const HIDDEN: usize = 5;

fn reverse() -> Options {
    Options { reverse: true, ..Options::default() }
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
    let ours = RnnLayer::from_torch(Rnn::new(Lstm), INPUT, HIDDEN, "l0", vb)?;
    let out = ours.forward(&x, &SequenceOptions::default())?;
    assert!(
        largest_difference(&out.h.flatten_from(2)?, &theirs.states_to_tensor(&states)?)?
            < TOLERANCE
    );
    let last = &states[6];
    for (k, theirs) in [last.h(), last.c()].into_iter().enumerate() {
        assert!(largest_difference(&out.last.get(k)?.squeeze(1)?, theirs)? < TOLERANCE);
    }
    Ok(())
}

#[test]
fn gru_agrees_with_candle_nn() -> Result<()> {
    let vb = builder(torch_weights(3, "l0")?);
    let x = Tensor::randn(0.0f64, 1.0, (2, 7, INPUT), &Device::Cpu)?;
    let theirs = gru(INPUT, HIDDEN, GRUConfig::default(), vb.clone())?;
    let states = theirs.seq(&x)?.iter().map(|state| state.h().clone()).collect::<Vec<_>>();
    let ours = RnnLayer::from_torch(Rnn::new(Gru), INPUT, HIDDEN, "l0", vb)?;
    let out = ours.forward(&x, &SequenceOptions::default())?;
    assert!(largest_difference(&out.h.flatten_from(2)?, &Tensor::stack(&states, 1)?)? < TOLERANCE);
    Ok(())
}

#[test]
fn elman_agrees_with_its_equation() -> Result<()> {
    let weights = torch_weights(1, "l1_reverse")?;
    let x = Tensor::randn(0.0f64, 1.0, (2, 4, INPUT), &Device::Cpu)?;
    let rnn = Rnn::new(Elman).with(reverse());
    let ours = RnnLayer::from_torch(rnn, INPUT, HIDDEN, "l1_reverse", builder(weights.clone()))?;
    let got = ours.forward(&x, &SequenceOptions::default())?.h.flatten_from(2)?;
    // h = tanh(W_ih x + b_ih + W_hh h + b_hh), in reverse
    let get = |name: &str| weights[&format!("{name}_l1_reverse")].clone();
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

/// Returns the layer's output for a fixed input.
fn output<C: FromTorch>(layer: &RnnLayer<C>, dtype: DType) -> Result<Tensor> {
    let x = Tensor::arange(0f64, 2.0 * 7.0 * INPUT as f64, &Device::Cpu)?.sin()?.to_dtype(dtype)?;
    Ok(layer.forward(&x.reshape((2, 7, INPUT))?, &SequenceOptions::default())?.h)
}

/// Trains a layer over variables in PyTorch's layout, and checks their gradients.
fn trains<C: FromTorch>(cell: C, gates: usize) -> Result<()> {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let rows = gates * HIDDEN;
    for (name, shape) in [("weight_ih_l0", &[rows, INPUT][..]), ("weight_hh_l0", &[rows, HIDDEN])] {
        vb.pp("rnn").get_with_hints(shape, name, Init::Randn { mean: 0.0, stdev: 0.4 })?;
    }
    for name in ["bias_ih_l0", "bias_hh_l0"] {
        vb.pp("rnn").get_with_hints(rows, name, Init::Randn { mean: 0.0, stdev: 0.4 })?;
    }
    let layer = RnnLayer::from_torch(Rnn::new(cell.clone()), INPUT, HIDDEN, "l0", vb.pp("rnn"))?;
    let target = Tensor::full(0.3f64, (2, 7, 1, HIDDEN), &Device::Cpu)?;
    let loss = |layer: &RnnLayer<C>| candle_nn::loss::mse(&output(layer, DType::F64)?, &target);
    let grads = loss(&layer)?.backward()?;
    for (name, var) in map.data().lock().expect("no panic").iter() {
        let grad = grads.get(var).expect("every variable of the layer has a gradient");
        assert_eq!(grad.dims(), var.dims());
        // Compares with the central difference along the gradient.
        let along = |step: f64| -> Result<f64> {
            let before = var.copy()?.detach();
            var.set(&(&before + (grad * step)?)?.detach())?;
            let loss = loss(&layer)?.to_scalar::<f64>()?;
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
    let before = loss(&layer)?.to_scalar::<f64>()?;
    for _ in 0..60 {
        optimiser.backward_step(&loss(&layer)?)?;
    }
    let after = loss(&layer)?.to_scalar::<f64>()?;
    assert!(after < 0.2 * before, "{}: {before} to {after}", C::NAME);
    // A second layer over the trained variables computes the same.
    let again = RnnLayer::from_torch(Rnn::new(cell), INPUT, HIDDEN, "l0", vb.pp("rnn"))?;
    assert_eq!(
        largest_difference(&output(&layer, DType::F64)?, &output(&again, DType::F64)?)?,
        0.0
    );
    Ok(())
}

#[test]
fn layers_of_variables_train() -> Result<()> {
    trains(Elman, 1)?;
    trains(Gru, 3)?;
    trains(Lstm, 4)
}

#[test]
fn new_variables_are_initialised_like_pytorch() -> Result<()> {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let hidden = 100;
    RnnLayer::from_torch(Rnn::new(Gru), INPUT, hidden, "l0", vb)?;
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
fn absent_biases_are_zero_and_wrong_shapes_are_rejected() -> Result<()> {
    let mut weights = torch_weights(3, "l0")?;
    weights.remove("bias_ih_l0");
    weights.remove("bias_hh_l0");
    let layer = RnnLayer::from_torch(Rnn::new(Gru), INPUT, HIDDEN, "l0", builder(weights.clone()))?;
    assert_eq!(layer.weights()?.b.abs()?.sum_all()?.to_scalar::<f64>()?, 0.0);
    assert!(
        RnnLayer::from_torch(Rnn::new(Lstm), INPUT, HIDDEN, "l0", builder(weights.clone()))
            .is_err()
    );
    assert!(RnnLayer::from_torch(Rnn::new(Gru), INPUT, HIDDEN, "l1", builder(weights)).is_err());
    Ok(())
}

#[test]
fn a_missing_bias_is_named() -> Result<()> {
    for (missing, present) in [("bias_ih_l0", "bias_hh_l0"), ("bias_hh_l0", "bias_ih_l0")] {
        let mut weights = torch_weights(4, "l0")?;
        weights.remove(missing);
        let vb = builder(
            weights.into_iter().map(|(name, tensor)| (format!("rnn.{name}"), tensor)).collect(),
        );
        let layer = RnnLayer::from_torch(Rnn::new(Lstm), INPUT, HIDDEN, "l0", vb.pp("rnn"));
        let message = layer.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains(&format!("rnn.{missing} is missing")), "{message}");
        assert!(message.contains(&format!("rnn.{present} is present")), "{message}");
    }
    Ok(())
}

#[test]
fn weights_of_the_reverse_direction_need_a_reverse_recurrence() -> Result<()> {
    let weights = torch_weights(4, "l0_reverse")?;
    let forwards =
        RnnLayer::from_torch(Rnn::new(Lstm), INPUT, HIDDEN, "l0_reverse", builder(weights.clone()));
    let message = forwards.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("l0_reverse") && message.contains("reverse: true"), "{message}");
    let rnn = Rnn::new(Lstm).with(reverse());
    assert!(
        RnnLayer::from_torch(rnn.clone(), INPUT, HIDDEN, "l0_reverse", builder(weights)).is_ok()
    );
    // A unidirectional module that was trained on reversed sequences is fine.
    assert!(
        RnnLayer::from_torch(rnn, INPUT, HIDDEN, "l0", builder(torch_weights(4, "l0")?)).is_ok()
    );
    Ok(())
}
