//! The layer: weights from PyTorch's layout against candle-nn's own LSTM and GRU, parameters, and training.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rnn::{GRUConfig, LSTMConfig, RNN, gru, lstm};
use candle_nn::{AdamW, Linear, Module, Optimizer, VarBuilder, VarMap};
use flashrnn::{Cell, Elman, Gru, Lstm, Slstm};
use flashrnn_candle::{LayerSize, Optional, Rnn, RnnLayer};

const INPUT: usize = 3;
const HIDDEN: usize = 5;

/// Weights under PyTorch's names, all of them random.
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

/// f64 sums of eight terms in another order.
const TOLERANCE: f64 = 1e-14;

#[test]
fn lstm_weights_mean_what_they_mean_in_candle_nn() -> Result<()> {
    let vb = builder(torch_weights(4, "l0")?);
    let x = Tensor::randn(0.0f64, 1.0, (2, 7, INPUT), &Device::Cpu)?;
    let theirs = lstm(INPUT, HIDDEN, LSTMConfig::default(), vb.clone())?;
    let states = theirs.seq(&x)?;
    let ours = RnnLayer::from_torch(Rnn::new(Lstm), INPUT, HIDDEN, "l0", vb)?;
    let out = ours.forward(&x, &Optional::default())?;
    assert!(largest_difference(&out.h.flatten_from(2)?, &theirs.states_to_tensor(&states)?)? < TOLERANCE);
    let last = &states[6];
    for (k, theirs) in [last.h(), last.c()].into_iter().enumerate() {
        assert!(largest_difference(&out.last.get(k)?.squeeze(1)?, theirs)? < TOLERANCE);
    }
    Ok(())
}

#[test]
fn gru_weights_mean_what_they_mean_in_candle_nn() -> Result<()> {
    let vb = builder(torch_weights(3, "l0")?);
    let x = Tensor::randn(0.0f64, 1.0, (2, 7, INPUT), &Device::Cpu)?;
    let theirs = gru(INPUT, HIDDEN, GRUConfig::default(), vb.clone())?;
    let states = theirs.seq(&x)?.iter().map(|state| state.h().clone()).collect::<Vec<_>>();
    let ours = RnnLayer::from_torch(Rnn::new(Gru), INPUT, HIDDEN, "l0", vb)?;
    let out = ours.forward(&x, &Optional::default())?;
    assert!(largest_difference(&out.h.flatten_from(2)?, &Tensor::stack(&states, 1)?)? < TOLERANCE);
    Ok(())
}

#[test]
fn elman_weights_mean_the_equation() -> Result<()> {
    let weights = torch_weights(1, "l1_reverse")?;
    let x = Tensor::randn(0.0f64, 1.0, (2, 4, INPUT), &Device::Cpu)?;
    let rnn = Rnn { reverse: true, ..Rnn::new(Elman) };
    let ours = RnnLayer::from_torch(rnn, INPUT, HIDDEN, "l1_reverse", builder(weights.clone()))?;
    let got = ours.forward(&x, &Optional::default())?.h.flatten_from(2)?;
    // h = tanh(W_ih x + b_ih + W_hh h + b_hh), from the end
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

#[test]
fn absent_biases_are_zero_and_wrong_shapes_are_refused() -> Result<()> {
    let mut weights = torch_weights(3, "l0")?;
    weights.remove("bias_ih_l0");
    weights.remove("bias_hh_l0");
    let layer = RnnLayer::from_torch(Rnn::new(Gru), INPUT, HIDDEN, "l0", builder(weights.clone()))?;
    assert_eq!(layer.weights()?.b.abs()?.sum_all()?.to_scalar::<f64>()?, 0.0);
    assert!(RnnLayer::from_torch(Rnn::new(Lstm), INPUT, HIDDEN, "l0", builder(weights.clone())).is_err());
    assert!(RnnLayer::from_torch(Rnn::new(Gru), INPUT, HIDDEN, "l1", builder(weights)).is_err());
    let mut broken = layer.weights()?;
    broken.b = broken.b.narrow(0, 0, 3)?;
    assert!(RnnLayer::from_weights(Rnn::new(Gru), &broken).is_err());
    Ok(())
}

#[test]
fn parameters_have_the_documented_names() -> Result<()> {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let size = LayerSize { input: 6, heads: 2, head_dim: 4 };
    let layer = RnnLayer::new(Rnn::new(Gru), size, vb.pp("rnn"))?;
    let mut named = map
        .data()
        .lock()
        .map(|data| data.iter().map(|(k, v)| (k.clone(), v.dims().to_vec())).collect::<Vec<_>>())
        .unwrap_or_default();
    named.sort();
    let mut want = vec![("rnn.r".to_string(), vec![3, 2, 4, 4]), ("rnn.w".to_string(), vec![24, 6])];
    want.extend(["n_h", "n_x", "r", "z"].map(|gate| (format!("rnn.b_{gate}"), vec![2, 4])));
    want.sort();
    assert_eq!(named, want);
    let x = Tensor::zeros((3, 0, 6), DType::F32, &Device::Cpu)?;
    assert_eq!(layer.forward(&x, &Optional::default())?.h.dims(), [3, 0, 2, 4]);
    assert!(layer.forward(&x.narrow(2, 0, 5)?, &Optional::default()).is_err());
    assert!(RnnLayer::new(Rnn::new(Gru), LayerSize { heads: 0, ..size }, vb).is_err());
    Ok(())
}

/// A network that must carry a sign over ten steps learns to.
fn learns<C: Cell>(cell: C) -> Result<()> {
    let device = &Device::Cpu;
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, device);
    let layer = RnnLayer::new(Rnn::new(cell), LayerSize { input: 1, heads: 2, head_dim: 8 }, vb.pp("rnn"))?;
    let head = candle_nn::linear(16, 1, vb.pp("head"))?;
    // x: [8, 10, 1], ±1 at the first step, then zeros; the target is that first number.
    let signs: Vec<f32> = (0..8).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let target = Tensor::from_vec(signs, (8, 1), device)?;
    let x = Tensor::cat(&[target.unsqueeze(1)?, Tensor::zeros((8, 9, 1), DType::F32, device)?], 1)?;
    let loss = || {
        let h = layer.forward(&x, &Optional::default())?.h;
        let h = h.narrow(1, 9, 1)?.flatten_from(1)?;
        candle_nn::loss::mse(&head.forward(&h)?, &target)
    };
    let mut optimizer = AdamW::new_lr(map.all_vars(), 0.02)?;
    let before = loss()?.to_scalar::<f32>()?;
    for _ in 0..60 {
        optimizer.backward_step(&loss()?)?;
    }
    let after = loss()?.to_scalar::<f32>()?;
    assert!(after < 0.1 * before, "{}: {before} to {after}", C::NAME);
    Ok(())
}

#[test]
fn every_cell_learns() -> Result<()> {
    learns(Elman)?;
    learns(Gru)?;
    learns(Lstm)?;
    learns(Slstm)
}
