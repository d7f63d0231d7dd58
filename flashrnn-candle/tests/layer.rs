//! Tests the parameters, shapes and training of the layer.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Module, Optimizer, VarBuilder, VarMap};
use flashrnn::{Cell, Elman, Gru, Lstm, Slstm};
use flashrnn_candle::{FrozenLayer, LayerSize, Rnn, RnnLayer, SequenceOptions, State};

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
    let mut want =
        vec![("rnn.r".to_string(), vec![3, 2, 4, 4]), ("rnn.w".to_string(), vec![24, 6])];
    want.extend(["n_h", "n_x", "r", "z"].map(|gate| (format!("rnn.b_{gate}"), vec![2, 4])));
    want.sort();
    assert_eq!(named, want);
    let x = Tensor::zeros((3, 0, 6), DType::F32, &Device::Cpu)?;
    assert_eq!(layer.forward(&x, &SequenceOptions::default())?.h.dims(), [3, 0, 2, 4]);
    assert!(layer.forward(&x.narrow(2, 0, 5)?, &SequenceOptions::default()).is_err());
    assert!(RnnLayer::new(Rnn::new(Gru), LayerSize { heads: 0, ..size }, vb).is_err());
    let mut broken = layer.weights()?;
    broken.b = broken.b.narrow(0, 0, 3)?;
    assert!(RnnLayer::from_weights(Rnn::new(Gru), &broken).is_err());
    Ok(())
}

/// An empty batch, such as the last one of an epoch, has zero gradients.
#[test]
fn an_empty_batch_has_zero_gradients() -> Result<()> {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let layer = RnnLayer::new(Rnn::new(Lstm), LayerSize { input: 3, heads: 2, head_dim: 4 }, vb)?;
    let x = Tensor::zeros((0, 5, 3), DType::F32, &Device::Cpu)?;
    let out = layer.forward(&x, &SequenceOptions::default())?;
    assert_eq!(out.h.dims(), [0, 5, 2, 4]);
    let grads = out.h.sum_all()?.backward()?;
    for var in map.all_vars() {
        let sum =
            grads.get(&var).map(|grad| grad.abs()?.sum_all()?.to_scalar::<f32>()).transpose()?;
        assert_eq!(sum, Some(0.0));
    }
    assert_eq!(layer.freeze()?.forward(&x, &SequenceOptions::default())?.h.dims(), [0, 5, 2, 4]);
    Ok(())
}

#[test]
fn layers_are_send_and_sync() {
    fn check<X: Send + Sync>() {}
    check::<RnnLayer<Lstm>>();
    check::<Rnn<Lstm>>();
    check::<FrozenLayer>();
    check::<State>();
}

/// Trains a network to carry a sign over ten steps.
fn learns<C: Cell>(cell: C) -> Result<()> {
    let device = &Device::Cpu;
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, device);
    let layer =
        RnnLayer::new(Rnn::new(cell), LayerSize { input: 1, heads: 2, head_dim: 8 }, vb.pp("rnn"))?;
    let head = candle_nn::linear(16, 1, vb.pp("head"))?;
    // x: [8, 10, 1] is ±1 at the first step and then 0. The target is that first number.
    let signs: Vec<f32> = (0..8).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let target = Tensor::from_vec(signs, (8, 1), device)?;
    let x = Tensor::cat(&[target.unsqueeze(1)?, Tensor::zeros((8, 9, 1), DType::F32, device)?], 1)?;
    let loss = || {
        let h = layer.forward(&x, &SequenceOptions::default())?.h;
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
