//! Frozen weights compute the same as the module, in one pass or step by step.

mod devices;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use flashrnn::{Cell, Elman, Gru, Layout, Lstm, Options, Slstm};
use flashrnn_candle::{FrozenRnn, Recurrence, Rnn, RnnConfig, SequenceOptions};

use devices::devices;

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

fn module<C: Cell>(cell: C, config: RnnConfig, dtype: DType) -> Result<Rnn<C>> {
    module_on(&Device::Cpu, cell, config, dtype)
}

fn module_on<C: Cell>(device: &Device, cell: C, config: RnnConfig, dtype: DType) -> Result<Rnn<C>> {
    // candle's GPU has no random numbers of 16 bits.
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, dtype, &Device::Cpu);
    Rnn::with_cell(cell.clone(), 3, 10, RnnConfig { heads: 2, ..config }, vb)?;
    let data = map.data().lock().expect("no panic");
    let moved = data.iter().map(|(name, var)| Ok((name.clone(), var.to_device(device)?)));
    let vb = VarBuilder::from_tensors(moved.collect::<Result<_>>()?, dtype, device);
    Rnn::with_cell(cell, 3, 10, RnnConfig { heads: 2, ..config }, vb)
}

/// Two layers in one direction.
fn layers() -> RnnConfig {
    RnnConfig { layers: 2, ..RnnConfig::default() }
}

/// Returns the devices that support `dtype`.
fn devices_with(dtype: DType) -> impl Iterator<Item = &'static Device> {
    devices().iter().filter(move |device| device.is_cpu() || dtype != DType::F64)
}

fn agrees<C: Cell>(cell: C, dtype: DType) -> Result<()> {
    devices_with(dtype).try_for_each(|device| agrees_on(device, cell.clone(), dtype))
}

fn agrees_on<C: Cell>(device: &Device, cell: C, dtype: DType) -> Result<()> {
    let clipped = Options {
        layout: Layout::TimeMajor,
        reverse: true,
        forward_clip: Some(0.4),
        ..Options::default()
    };
    for config in [
        RnnConfig::default(),
        RnnConfig { options: clipped, ..layers() },
        RnnConfig { bidirectional: true, ..layers() },
    ] {
        let module = module_on(device, cell.clone(), config, dtype)?;
        let frozen = module.freeze()?;
        let lengths = Tensor::new(&[6u32, 0, 4, 6], device)?;
        let x = Tensor::randn(0.0f64, 1.0, (4, 6, 3), &Device::Cpu)?.to_dtype(dtype)?;
        let x = x.to_device(device)?;
        let time_major = config.options.layout == Layout::TimeMajor;
        let x = if time_major { x.transpose(0, 1)?.contiguous()? } else { x };
        let sequence = SequenceOptions { lengths: Some(&lengths), ..SequenceOptions::default() };
        let first = module.forward(&x, &sequence, false)?;
        let sequence = SequenceOptions { s0: Some(&first.last), ..sequence };
        let (want, got) = (module.forward(&x, &sequence, false)?, frozen.forward(&x, &sequence)?);
        assert_eq!(got.h.dtype(), dtype);
        assert_eq!(values(&got.h)?, values(&want.h)?, "{} {dtype:?} h", C::NAME);
        assert_eq!(values(&got.last)?, values(&want.last)?, "{} {dtype:?} last", C::NAME);
        assert!(!got.h.track_op() && !got.last.track_op());
    }
    Ok(())
}

#[test]
fn a_frozen_module_agrees_with_the_module() -> Result<()> {
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        agrees(Elman, dtype)?;
        agrees(Gru, dtype)?;
        agrees(Lstm, dtype)?;
        agrees(Slstm, dtype)?;
    }
    Ok(())
}

/// Runs `x [B, T, I]` step by step, and returns h of all steps and the final state.
fn steps(frozen: &FrozenRnn, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut state = frozen.state(x.dim(0)?)?;
    let mut h = vec![];
    for t in 0..x.dim(1)? {
        h.push(frozen.step(&x.narrow(1, t, 1)?.squeeze(1)?, &mut state)?);
    }
    Ok((Tensor::stack(&h, 1)?, state.to_tensor()?))
}

#[test]
fn single_steps_agree_with_one_pass() -> Result<()> {
    let all = [(DType::F32, 1e-6), (DType::F64, 1e-14)].into_iter();
    let all = all.flat_map(|(dtype, tolerance)| {
        devices_with(dtype).map(move |device| (device, dtype, tolerance))
    });
    for (device, dtype, tolerance) in all {
        let frozen = module_on(device, Slstm, layers(), dtype)?.freeze()?;
        let x = Tensor::randn(0.0f64, 1.0, (2, 7, 3), &Device::Cpu)?.to_dtype(dtype)?;
        let x = x.to_device(device)?;
        let whole = frozen.forward(&x, &SequenceOptions::default())?;
        let (h, last) = steps(&frozen, &x)?;
        // W x is a product of a different size, which may sum in a different order.
        let near = |a: &Tensor, b: &Tensor| -> Result<bool> {
            Ok(values(a)?
                .iter()
                .zip(values(b)?)
                .all(|(a, b)| (a - b).abs() <= tolerance * b.abs().max(1.0)))
        };
        assert!(near(&h, &whole.h)? && near(&last, &whole.last)?, "{dtype:?}");
        // Continues from the middle of the sequence.
        let half = frozen.forward(&x.narrow(1, 0, 4)?, &SequenceOptions::default())?;
        let mut state = frozen.state_from(&half.last)?;
        for t in 4..7 {
            let h = frozen.step(&x.narrow(1, t, 1)?.squeeze(1)?, &mut state)?;
            assert!(near(&h, &whole.h.narrow(1, t, 1)?.squeeze(1)?)?, "{dtype:?} step {t}");
        }
    }
    Ok(())
}

#[test]
fn sixteen_bit_tensors_with_f32_weights() -> Result<()> {
    let r = Tensor::randn(0f32, 0.3, (4, 2, 5, 5), &Device::Cpu)?;
    let b = Tensor::randn(0f32, 0.3, (4, 2, 5), &Device::Cpu)?;
    let wx = Tensor::randn(0f32, 1.0, (3, 4, 4, 2, 5), &Device::Cpu)?.to_dtype(DType::BF16)?;
    let rnn = Recurrence::new(Lstm);
    let want = rnn.forward(&wx, &r, &b, &SequenceOptions::default())?.h;
    let frozen = rnn.freeze(&r, &b, DType::BF16)?;
    assert_eq!(values(&frozen.forward(&wx, &SequenceOptions::default())?.h)?, values(&want)?);
    Ok(())
}

#[test]
fn errors_name_the_tensor() -> Result<()> {
    let frozen = module(Lstm, RnnConfig::default(), DType::F32)?.freeze()?;
    let other = module(Gru, RnnConfig::default(), DType::F32)?.freeze()?;
    let wide = module(Lstm, RnnConfig::default(), DType::F64)?.freeze()?;
    let deep = module(Lstm, layers(), DType::F32)?.freeze()?;
    let both = RnnConfig { bidirectional: true, ..layers() };
    let both = module(Lstm, both, DType::F32)?.freeze()?;
    let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
    let fails = |result: Result<Tensor>, wanted: &str| {
        let text = result.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains(wanted), "{text:?} does not contain {wanted:?}");
    };
    fails(frozen.step(&x, &mut other.state(2)?), "state: belongs to another recurrence");
    fails(frozen.step(&x, &mut wide.state(2)?), "state: belongs to another recurrence");
    fails(frozen.step(&x, &mut deep.state(2)?), "state: got 2 layers, wanted 1");
    fails(both.state(2).map(|_| x.clone()), "a bidirectional module can't run step by step");
    fails(
        frozen.step(&x, &mut frozen.state(3)?),
        "wx: got shape [2, 4, 2, 5], wanted [3, 4, 2, 5]",
    );
    fails(
        frozen.step(&x.unsqueeze(1)?, &mut frozen.state(2)?),
        "x: got shape [2, 1, 3], wanted [B, I]",
    );
    fails(
        frozen.step(&x.to_dtype(DType::F64)?, &mut frozen.state(2)?),
        "the weights were frozen for F32",
    );
    let state = |s0: &Tensor| frozen.state_from(s0).and_then(|state| state.to_tensor());
    fails(
        state(&Tensor::zeros((1, 1, 2, 2, 5), DType::F32, &Device::Cpu)?),
        "s0: got shape [1, 1, 2, 2, 5], wanted [2, 1, 2, 2, 5]",
    );
    let rnn = Recurrence::new(Lstm);
    let r = Tensor::zeros((4, 2, 5, 5), DType::F32, &Device::Cpu)?;
    let frozen = |r: &Tensor, dtype| rnn.freeze(r, &r.narrow(3, 0, 1)?.squeeze(3)?, dtype);
    let wx = Tensor::zeros((2, 3, 4, 2, 5), DType::F64, &Device::Cpu)?;
    fails(
        frozen(&r, DType::F32)?.forward(&wx, &SequenceOptions::default()).map(|out| out.h),
        "frozen for F32",
    );
    fails(frozen(&r, DType::F64).map(|_| r.clone()), "r is F32, wanted F64");
    fails(frozen(&r.narrow(0, 0, 3)?, DType::F32).map(|_| r.clone()), "r: got shape [3, 2, 5, 5]");
    Ok(())
}
