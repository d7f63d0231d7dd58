//! Tests candle-nn's trait of recurrent networks.

use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use candle_nn::{RNN, VarBuilder, VarMap};
use flashrnn::{Layout, Options};
use flashrnn_candle::{Gru, Lstm, Rnn, RnnConfig, SequenceOptions, Slstm, StepState};

const WIDTH: usize = 6;

fn module<C: flashrnn::Cell + Default>(config: RnnConfig, dtype: DType) -> Result<Rnn<C>> {
    let vb = VarBuilder::from_varmap(&VarMap::new(), dtype, &Device::Cpu);
    Rnn::new(3, WIDTH, config, vb)
}

fn layers() -> RnnConfig {
    RnnConfig { layers: 2, heads: 2, ..RnnConfig::default() }
}

#[track_caller]
fn assert_near(got: &Tensor, want: &Tensor) {
    assert_eq!((got.dims(), got.dtype()), (want.dims(), want.dtype()));
    let largest = || (got - want)?.abs()?.max_all()?.to_scalar::<f64>();
    // W x is a product of a different size, which may sum in a different order.
    assert!(largest().unwrap_or(f64::NAN) < 1e-13);
}

/// Code that is generic over candle-nn's trait.
fn outputs<R: RNN>(rnn: &R, x: &Tensor) -> Result<Tensor> {
    rnn.states_to_tensor(&rnn.seq(x)?)
}

fn agrees<C: flashrnn::Cell + Default>() -> Result<()> {
    let rnn = module::<C>(layers(), DType::F64)?;
    let x = Var::from_tensor(&Tensor::randn(0f64, 1.0, (2, 7, 3), &Device::Cpu)?)?;
    let want = rnn.forward(&x, &SequenceOptions::default(), false)?;
    let states = rnn.seq(&x)?;
    assert_near(&outputs(&rnn, &x)?, &want.h);
    assert_near(&rnn.states_to_tensor(&states[2..5])?, &want.h.narrow(1, 2, 3)?);
    let picked = [states[6].clone(), states[1].clone()];
    let h = |t| want.h.narrow(1, t, 1);
    assert_near(&rnn.states_to_tensor(&picked)?, &Tensor::cat(&[h(6)?, h(1)?], 1)?);
    assert_near(&states[6].to_tensor()?, &want.last);

    // Continues step by step from the middle.
    let mut state = states[3].clone();
    for t in 4..7 {
        state = rnn.step(&x.narrow(1, t, 1)?.squeeze(1)?, &state)?;
        assert_near(&state.h()?, &h(t)?.squeeze(1)?);
    }
    assert_near(&state.to_tensor()?, &want.last);
    let rest = rnn.seq_init(&x.narrow(1, 4, 3)?, &states[3])?;
    assert_near(&rnn.states_to_tensor(&rest)?, &want.h.narrow(1, 4, 3)?);

    // Gradients flow through all of them. (A loss on h alone, as the gradient of sLSTM's stabiliser
    // is ignored.)
    let d_x = |h: &Tensor| -> Result<Tensor> {
        Ok(h.sqr()?.sum_all()?.backward()?.get(&x).expect("a gradient").clone())
    };
    assert_near(&d_x(&outputs(&rnn, &x)?)?, &d_x(&want.h)?);
    assert_near(&d_x(&state.h()?)?, &d_x(&h(6)?)?);
    assert_near(&d_x(&states[6].h()?)?, &d_x(&h(6)?)?);
    Ok(())
}

#[test]
fn the_trait_agrees_with_forward() -> Result<()> {
    agrees::<flashrnn::Elman>()?;
    agrees::<flashrnn::Gru>()?;
    agrees::<flashrnn::Lstm>()?;
    agrees::<flashrnn::Slstm>()
}

#[test]
fn element_types() -> Result<()> {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let rnn: Slstm = module(layers(), dtype)?;
        let x = Tensor::randn(0f32, 1.0, (2, 4, 3), &Device::Cpu)?.to_dtype(dtype)?;
        let states = rnn.seq(&x)?;
        assert_eq!(rnn.states_to_tensor(&states)?.dtype(), dtype);
        assert_eq!(states[1].to_tensor()?.dtype(), DType::F32);
        let state = rnn.step(&x.narrow(1, 0, 1)?.squeeze(1)?, &rnn.zero_state(2)?)?;
        assert_eq!((state.h()?.dims(), state.h()?.dtype()), (&[2, WIDTH][..], dtype));
        assert_eq!(rnn.forward_t(&x.narrow(1, 0, 0)?, false)?.dims(), [2, 0, WIDTH]);
        assert!(rnn.seq(&x.narrow(1, 0, 0)?)?.is_empty());
    }
    Ok(())
}

#[test]
fn modules_that_do_not_fit_are_errors() -> Result<()> {
    let message = |result: Result<Vec<StepState>>| {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let x = Tensor::zeros((2, 4, 3), DType::F32, &Device::Cpu)?;
    let both: Lstm = module(RnnConfig { bidirectional: true, ..layers() }, DType::F32)?;
    assert!(message(both.seq(&x)).contains("bidirectional"));
    for options in [
        Options { reverse: true, ..Options::default() },
        Options { layout: Layout::TimeMajor, ..Options::default() },
    ] {
        let gru: Gru = module(RnnConfig { options, ..layers() }, DType::F32)?;
        assert!(message(gru.seq(&x)).contains("candle-nn's trait RNN"));
        let step = gru.step(&x.narrow(1, 0, 1)?.squeeze(1)?, &gru.zero_state(2)?);
        assert!(message(step.map(|state| vec![state])).contains("candle-nn's trait RNN"));
    }
    Ok(())
}
