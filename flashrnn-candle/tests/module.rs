//! Tests the parameters, shapes, errors and training of modules.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use candle_nn::{AdamW, Module, Optimizer, VarBuilder, VarMap};
use flashrnn::{self as cells, Cell, Layout, Options};
use flashrnn_candle::{
    Elman, FrozenRnn, Gru, Lstm, Recurrence, Rnn, RnnConfig, RnnState, SequenceOptions, Slstm,
    Weights,
};

fn builder(map: &VarMap) -> VarBuilder<'static> {
    VarBuilder::from_varmap(map, DType::F32, &Device::Cpu)
}

fn zeros(dims: &[usize]) -> Result<Tensor> {
    Tensor::zeros(dims, DType::F32, &Device::Cpu)
}

fn none() -> SequenceOptions<'static> {
    SequenceOptions::default()
}

/// Returns the names and shapes of the variables, sorted.
fn named(map: &VarMap) -> Vec<(String, Vec<usize>)> {
    let data = map.data().lock().expect("no panic");
    let mut named: Vec<_> = data.iter().map(|(k, v)| (k.clone(), v.dims().to_vec())).collect();
    named.sort();
    named
}

#[test]
fn parameters_have_the_documented_names() -> Result<()> {
    let map = VarMap::new();
    let config = RnnConfig { layers: 2, bidirectional: true, heads: 2, ..RnnConfig::default() };
    let gru = Gru::new(6, 8, config, builder(&map).pp("rnn"))?;
    let mut want = vec![];
    for (layer, input) in [("l0", 6), ("l0_reverse", 6), ("l1", 16), ("l1_reverse", 16)] {
        want.push((format!("rnn.r_{layer}"), vec![3, 2, 4, 4]));
        want.push((format!("rnn.w_{layer}"), vec![24, input]));
        want.extend(["n_h", "n_x", "r", "z"].map(|b| (format!("rnn.b_{b}_{layer}"), vec![2, 4])));
    }
    want.sort();
    assert_eq!(named(&map), want);
    assert_eq!(gru.weights()?.len(), 4);

    let map = VarMap::new();
    Lstm::new(3, 4, RnnConfig { bias: false, ..RnnConfig::default() }, builder(&map))?;
    let want = [("r_l0".to_owned(), vec![4, 1, 4, 4]), ("w_l0".to_owned(), vec![16, 3])];
    assert_eq!(named(&map), want);

    let map = VarMap::new();
    let config = RnnConfig { bias: false, ..RnnConfig::default() };
    Gru::from_torch(3, 4, config, builder(&map))?;
    let want = [("weight_hh_l0".to_owned(), vec![12, 4]), ("weight_ih_l0".to_owned(), vec![12, 3])];
    assert_eq!(named(&map), want);
    Ok(())
}

#[test]
fn shapes_are_those_documented() -> Result<()> {
    for layout in [Layout::BatchMajor, Layout::TimeMajor] {
        for (bidirectional, width) in [(false, 8), (true, 16)] {
            let options = Options { layout, ..Options::default() };
            let config =
                RnnConfig { layers: 2, bidirectional, heads: 2, options, ..RnnConfig::default() };
            let lstm = Lstm::new(6, 8, config, builder(&VarMap::new()))?;
            for (batch, time) in [(3, 5), (3, 1), (3, 0), (0, 5), (0, 0)] {
                let outer = if layout == Layout::TimeMajor { [time, batch] } else { [batch, time] };
                let x = zeros(&[outer[0], outer[1], 6])?;
                assert_eq!(lstm.forward_t(&x, false)?.dims(), [outer[0], outer[1], width]);
                let resets = Tensor::zeros((outer[0], outer[1]), DType::U8, &Device::Cpu)?;
                let options = SequenceOptions { resets: Some(&resets), ..none() };
                let out = lstm.forward(&x, &options, true)?;
                assert_eq!(out.last.dims(), [2, width / 4, batch, 2, 4]);
                let frozen = lstm.freeze()?.forward(&x, &options)?;
                assert_eq!(frozen.h.dims(), out.h.dims());
                assert_eq!(frozen.last.dims(), out.last.dims());
            }
        }
    }
    Ok(())
}

/// Returns the text of an error, or nothing.
fn message<X>(result: Result<X>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[track_caller]
fn fails<X>(result: Result<X>, wanted: &str) {
    let text = message(result);
    assert!(text.contains(wanted), "{text:?} does not contain {wanted:?}");
}

#[test]
fn invalid_configurations_are_errors() -> Result<()> {
    let make = |input, hidden, config| Lstm::new(input, hidden, config, builder(&VarMap::new()));
    let base = RnnConfig::default();
    let reverse = Options { reverse: true, ..base.options };
    let clip = Options { forward_clip: Some(-1.0), ..base.options };
    fails(make(0, 4, base), "input is 0");
    fails(make(3, 0, base), "hidden is 0");
    fails(make(3, 4, RnnConfig { layers: 0, ..base }), "layers is 0");
    fails(make(3, 4, RnnConfig { heads: 0, ..base }), "heads");
    fails(make(3, 4, RnnConfig { heads: 3, ..base }), "hidden is 4, wanted a multiple of the 3");
    fails(make(3, 4, RnnConfig { dropout: 1.0, ..base }), "dropout is 1");
    fails(make(3, 4, RnnConfig { dropout: f32::NAN, ..base }), "dropout is NaN");
    fails(make(3, 4, RnnConfig { options: clip, ..base }), "forward_clip");
    fails(
        make(3, 4, RnnConfig { bidirectional: true, options: reverse, ..base }),
        "bidirectional and options.reverse are both set",
    );
    Ok(())
}

#[test]
fn missing_parameters_and_wrong_shapes_are_named() -> Result<()> {
    let map = VarMap::new();
    Lstm::new(3, 4, RnnConfig::default(), builder(&map).pp("rnn"))?;
    let data = map.data().lock().expect("no panic").clone();
    let tensors: HashMap<String, Tensor> =
        data.into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
    let make = |tensors, hidden, config| {
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        Lstm::new(3, hidden, config, vb.pp("rnn"))
    };
    assert!(make(tensors.clone(), 4, RnnConfig::default()).is_ok());
    let text = message(make(tensors.clone(), 5, RnnConfig::default()));
    assert!(text.contains("parameter rnn.w_l0, wanted with shape [20, 3]"), "{text}");
    assert!(text.contains("got: [16, 3]"), "{text}");
    let two = RnnConfig { layers: 2, ..RnnConfig::default() };
    fails(
        make(tensors.clone(), 4, two),
        "parameter rnn.w_l1, wanted with shape [16, 4]: cannot find tensor rnn.w_l1",
    );
    let mut missing = tensors;
    missing.remove("rnn.b_f_l0");
    fails(make(missing, 4, RnnConfig::default()), "parameter rnn.b_f_l0, wanted with shape [1, 4]");
    Ok(())
}

#[test]
fn parameters_that_the_configuration_leaves_out_are_named() -> Result<()> {
    let map = VarMap::new();
    let full = RnnConfig { layers: 2, bidirectional: true, ..RnnConfig::default() };
    let make = |config| Gru::new(3, 4, config, builder(&map).pp("rnn"));
    make(full)?;
    fails(make(RnnConfig { layers: 1, ..full }), "found parameter rnn.w_l1, but layers is 1");
    fails(
        make(RnnConfig { bidirectional: false, ..full }),
        "found parameter rnn.w_l0_reverse, but bidirectional is false",
    );
    fails(make(RnnConfig { bias: false, ..full }), "rnn.b_n_h_l0, but bias is false");
    make(full)?;
    let zeros = VarBuilder::zeros(DType::F32, &Device::Cpu);
    assert!(Gru::new(3, 4, RnnConfig::default(), zeros).is_ok());
    Ok(())
}

#[test]
fn wrong_inputs_are_named() -> Result<()> {
    let config = RnnConfig { layers: 2, bidirectional: true, ..RnnConfig::default() };
    let lstm = Lstm::new(3, 4, config, builder(&VarMap::new()))?;
    let x = zeros(&[2, 5, 3])?;
    let call = |x: &Tensor, options: SequenceOptions| lstm.forward(x, &options, false);
    fails(call(&zeros(&[2, 5, 4])?, none()), "x: got shape [2, 5, 4], wanted [B, T, 3]");
    fails(call(&zeros(&[2, 3])?, none()), "x: got shape [2, 3], wanted [B, T, 3]");
    fails(
        call(&x.to_dtype(DType::F64)?, none()),
        "x is F64, wanted F32 like the parameters, or F16 or BF16",
    );
    let s0 = zeros(&[2, 2, 2, 1, 4])?;
    fails(
        call(&x, SequenceOptions { s0: Some(&s0), ..none() }),
        "s0: got shape [2, 2, 2, 1, 4], wanted [2, 4, 2, 1, 4]",
    );
    let wide = Tensor::zeros((2, 6), DType::U8, &Device::Cpu)?;
    fails(
        call(&x, SequenceOptions { resets: Some(&wide), ..none() }),
        "resets: got shape [2, 6], wanted [2, 5]",
    );
    fails(call(&x, SequenceOptions { resets: Some(&zeros(&[2, 5])?), ..none() }), "resets is F32");
    let lengths = Tensor::new(&[1u32, 2, 3], &Device::Cpu)?;
    let resets = Tensor::zeros((2, 5), DType::U8, &Device::Cpu)?;
    fails(
        call(&x, SequenceOptions { lengths: Some(&lengths), resets: Some(&resets), ..none() }),
        "lengths: got shape [3], wanted [2]",
    );
    Ok(())
}

#[test]
fn existing_weights_make_the_same_module() -> Result<()> {
    let config = RnnConfig { layers: 2, bidirectional: true, heads: 2, ..RnnConfig::default() };
    let slstm = Slstm::new(3, 4, config, builder(&VarMap::new()))?;
    let x = Tensor::randn(0f32, 1.0, (2, 5, 3), &Device::Cpu)?;
    let weights = slstm.weights()?;
    let again = Slstm::from_weights(cells::Slstm, config, &weights)?;
    let values = |module: &Slstm| module.forward_t(&x, false)?.flatten_all()?.to_vec1::<f32>();
    assert_eq!(values(&slstm)?, values(&again)?);

    let make = |config, weights: &[Weights]| Slstm::from_weights(cells::Slstm, config, weights);
    fails(make(config, &weights[..3]), "weights: got 3 entries, wanted 4");
    fails(make(RnnConfig { heads: 1, ..config }, &weights), "r: got 2 heads, wanted 1");
    let mut broken = weights.clone();
    broken[1].b = broken[1].b.narrow(0, 0, 3)?;
    fails(make(config, &broken), "weights of l0_reverse: b: got shape [3, 2, 2]");
    broken[0].w = broken[0].w.flatten_all()?;
    fails(make(config, &broken), "wanted [Gx·N·D, I]");
    Ok(())
}

/// Weights may be views, such as a transposed matrix; results and gradients are those of a copy.
#[test]
fn weights_need_not_be_contiguous() -> Result<()> {
    let x = Tensor::randn(0f32, 1.0, (2, 5, 3), &Device::Cpu)?;
    let elman = Elman::new(3, 4, RnnConfig::default(), builder(&VarMap::new()))?;
    let weights = elman.weights()?.remove(0);
    let run = |weights: Weights, x: &Tensor| -> Result<(Vec<f32>, GradStore)> {
        let elman = Elman::from_weights(cells::Elman, RnnConfig::default(), &[weights])?;
        let h = elman.forward_t(x, true)?;
        Ok((h.flatten_all()?.to_vec1()?, h.sqr()?.sum_all()?.backward()?))
    };
    let values = |grads: &GradStore, var: &Tensor, transposed: bool| {
        let grad = grads.get(var).expect("a gradient");
        let grad = if transposed { grad.t()? } else { grad.clone() };
        grad.flatten_all()?.to_vec1::<f32>()
    };
    let x = Var::from_tensor(&x)?;
    let w = Var::from_tensor(&weights.w.detach())?;
    let transposed = Var::from_tensor(&weights.w.detach().t()?.contiguous()?)?;
    let (want, want_grads) = run(Weights { w: w.as_tensor().clone(), ..weights.clone() }, &x)?;
    let (got, grads) = run(Weights { w: transposed.t()?, ..weights }, &x)?;
    assert_eq!(got, want);
    assert_eq!(values(&grads, &transposed, true)?, values(&want_grads, &w, false)?);
    assert_eq!(values(&grads, &x, false)?, values(&want_grads, &x, false)?);
    Ok(())
}

/// Parameters of f32 with 16-bit tensors have gradients of f32.
#[test]
fn sixteen_bits_with_parameters_of_f32() -> Result<()> {
    let map = VarMap::new();
    let config = RnnConfig { layers: 2, bidirectional: true, ..RnnConfig::default() };
    let gru = Gru::new(3, 6, config, builder(&map))?;
    let x = Tensor::randn(0f32, 1.0, (2, 5, 3), &Device::Cpu)?;
    let run = |x: &Tensor| -> Result<(Tensor, GradStore)> {
        let h = gru.forward_t(x, true)?;
        assert_eq!(h.dtype(), x.dtype());
        let h = h.to_dtype(DType::F32)?;
        let grads = h.sqr()?.sum_all()?.backward()?;
        Ok((h, grads))
    };
    let (want, want_grads) = run(&x)?;
    // A few roundings of half a unit in the last place accumulate: 4e-3 in bf16 and 5e-4 in f16.
    for (dtype, tolerance) in [(DType::BF16, 3e-2), (DType::F16, 4e-3)] {
        let (got, grads) = run(&x.to_dtype(dtype)?)?;
        let near = |got: &Tensor, want: &Tensor| -> Result<bool> {
            let norm = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>().map(f32::sqrt);
            Ok(norm(&(got - want)?)? <= tolerance * norm(want)?)
        };
        assert!(near(&got, &want)?, "{dtype:?} h");
        for (name, var) in map.data().lock().expect("no panic").iter() {
            let [got, want] = [&grads, &want_grads].map(|g| g.get(var).expect("a gradient"));
            assert_eq!(got.dtype(), DType::F32);
            assert!(near(got, want)?, "{dtype:?} {name}");
            fails(got.sum_all()?.backward(), "no second derivatives");
        }
    }
    Ok(())
}

#[test]
fn dropout_between_layers_only_in_training() -> Result<()> {
    let values = |h: Tensor| h.flatten_all()?.to_vec1::<f32>();
    for (layers, dropout) in [(1, 0.9), (2, 0.0), (2, 0.9)] {
        let config = RnnConfig { layers, dropout, ..RnnConfig::default() };
        let gru = Gru::new(3, 64, config, builder(&VarMap::new()))?;
        let x = Tensor::randn(0f32, 1.0, (2, 5, 3), &Device::Cpu)?;
        let still = values(gru.forward_t(&x, false)?)?;
        assert_eq!(values(gru.forward_t(&x, false)?)?, still);
        let drops = layers > 1 && dropout > 0.0;
        assert_eq!(values(gru.forward_t(&x, true)?)? != still, drops, "{layers} {dropout}");
    }
    Ok(())
}

/// An empty batch, such as the last one of an epoch, has zero gradients.
#[test]
fn an_empty_batch_has_zero_gradients() -> Result<()> {
    let map = VarMap::new();
    let config = RnnConfig { layers: 2, bidirectional: true, heads: 2, ..RnnConfig::default() };
    let lstm = Lstm::new(3, 8, config, builder(&map))?;
    let grads = lstm.forward_t(&zeros(&[0, 5, 3])?, true)?.sum_all()?.backward()?;
    for var in map.all_vars() {
        let sum =
            grads.get(&var).map(|grad| grad.abs()?.sum_all()?.to_scalar::<f32>()).transpose()?;
        assert_eq!(sum, Some(0.0));
    }
    Ok(())
}

#[test]
fn modules_are_send_and_sync() {
    fn check<X: Send + Sync>() {}
    check::<Lstm>();
    check::<Recurrence<cells::Lstm>>();
    check::<FrozenRnn>();
    check::<RnnState>();
}

/// Trains a network to carry a sign over ten steps.
fn learns<C: Cell>(cell: C) -> Result<()> {
    let device = &Device::Cpu;
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, device);
    let config = RnnConfig { heads: 2, ..RnnConfig::default() };
    let rnn = Rnn::with_cell(cell, 1, 16, config, vb.pp("rnn"))?;
    let head = candle_nn::linear(16, 1, vb.pp("head"))?;
    // x: [8, 10, 1] is ±1 at the first step and then 0. The target is that first number.
    let signs: Vec<f32> = (0..8).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let target = Tensor::from_vec(signs, (8, 1), device)?;
    let x = Tensor::cat(&[target.unsqueeze(1)?, Tensor::zeros((8, 9, 1), DType::F32, device)?], 1)?;
    let loss = || {
        let h = rnn.forward_t(&x, true)?.narrow(1, 9, 1)?.squeeze(1)?;
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
    learns(cells::Elman)?;
    learns(cells::Gru)?;
    learns(cells::Lstm)?;
    learns(cells::Slstm)
}
