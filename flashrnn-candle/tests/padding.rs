//! Values in the padding beyond `lengths` affect no output and no gradient.

mod devices;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use flashrnn::{Cell, Elman, Gru, Layout, Lstm, Options, Save, Slstm};
use flashrnn_candle::{Recurrence, Rnn, RnnConfig, SequenceOptions};

use devices::devices;

const LENGTHS: [u32; 3] = [4, 0, 2];
const TIME: usize = 4;

/// Returns a mask of the steps beyond the lengths, `[B, T]` or `[T, B]`.
fn is_padding(layout: Layout) -> Result<Tensor> {
    let rows = LENGTHS.iter().flat_map(|&n| (0..TIME as u32).map(move |t| u8::from(t >= n)));
    let padding = Tensor::from_vec(rows.collect::<Vec<_>>(), (LENGTHS.len(), TIME), &Device::Cpu)?;
    if layout == Layout::TimeMajor { padding.t()?.contiguous() } else { Ok(padding) }
}

/// Returns `x` with `value` in the padding.
fn with_padding(x: &Tensor, value: f32, layout: Layout) -> Result<Tensor> {
    let padding = is_padding(layout)?.unsqueeze(2)?.broadcast_as(x.shape())?;
    padding.where_cond(&Tensor::full(value, x.shape(), &Device::Cpu)?, x)
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

/// Returns the outputs, and the gradients of every parameter and of x, by name.
fn run<C: Cell>(
    device: &Device,
    cell: C,
    options: Options,
    padding: f32,
) -> Result<Vec<(String, Vec<u32>)>> {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, device);
    let config = RnnConfig { layers: 2, heads: 2, options, ..RnnConfig::default() };
    let rnn = Rnn::with_cell(cell, 2, 6, config, vb)?;
    let data = map.data().lock().expect("no panic");
    let mut vars: Vec<_> = data.iter().collect();
    vars.sort_by_key(|(name, _)| name.as_str());
    for (i, (_, var)) in vars.iter().enumerate() {
        let values = Tensor::arange(0f32, var.elem_count() as f32, device)?;
        var.set(&((values + i as f64)?.sin()? * 0.5)?.reshape(var.dims())?)?;
    }
    let outer = if options.layout == Layout::TimeMajor { (TIME, 3, 2) } else { (3, TIME, 2) };
    let x = Tensor::arange(0f32, 24.0, &Device::Cpu)?.cos()?.reshape(outer)?;
    let x = with_padding(&x, padding, options.layout)?;
    let x = Var::from_tensor(&x.to_device(device)?)?;
    let lengths = Tensor::new(&LENGTHS, device)?;
    let lengths = SequenceOptions { lengths: Some(&lengths), ..SequenceOptions::default() };
    let out = rnn.forward(&x, &lengths, true)?;
    // Uses only h of the final state; gradients of sLSTM's stabiliser are ignored.
    let loss = (out.h.sqr()?.sum_all()? + out.last.get(0)?.sin()?.sum_all()?)?;
    let grads = loss.backward()?;
    let mut results =
        vec![("h".to_string(), bits(&out.h)?), ("last".to_string(), bits(&out.last)?)];
    for (name, var) in vars.into_iter().map(|(name, var)| (name.as_str(), var)).chain([("x", &x)]) {
        results.push((name.to_string(), bits(grads.get(var).expect("a gradient"))?));
    }
    Ok(results)
}

fn check<C: Cell>(cell: C) -> Result<()> {
    devices().iter().try_for_each(|device| check_on(device, cell.clone()))
}

fn check_on<C: Cell>(device: &Device, cell: C) -> Result<()> {
    for layout in [Layout::BatchMajor, Layout::TimeMajor] {
        for (reverse, save) in [(false, Save::Gates), (true, Save::Recompute)] {
            let options = Options { layout, reverse, save, ..Options::default() };
            let zeros = run(device, cell.clone(), options, 0.0)?;
            for value in [f32::NAN, f32::INFINITY, -f32::INFINITY, f32::MAX] {
                for (want, got) in zeros.iter().zip(run(device, cell.clone(), options, value)?) {
                    assert_eq!(*want, got, "{} {options:?}, {value} in the padding", C::NAME);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn padding_changes_no_bit_of_any_module() -> Result<()> {
    check(Elman)?;
    check(Gru)?;
    check(Lstm)?;
    check(Slstm)
}

#[test]
fn infinite_gradients_of_padding_are_ignored() -> Result<()> {
    let wx = Var::from_tensor(
        &Tensor::arange(1f32, 25.0, &Device::Cpu)?.sin()?.reshape((3, TIME, 1, 1, 2))?,
    )?;
    let r = Var::new(&[[[[0.5f32, -0.3], [0.2, 0.4]]]], &Device::Cpu)?;
    let b = Var::zeros((1, 1, 2), DType::F32, &Device::Cpu)?;
    let lengths = Tensor::new(&LENGTHS, &Device::Cpu)?;
    let options = SequenceOptions { lengths: Some(&lengths), ..SequenceOptions::default() };
    let h = Recurrence::new(Elman).forward(&wx, &r, &b, &options)?.h;
    // h is 0 in the padding, where the derivative of the square root is infinite.
    let grads = h.abs()?.sqrt()?.sum_all()?.backward()?;
    for var in [&wx, &r, &b] {
        let sum = grads.get(var).expect("a gradient").abs()?.sum_all()?.to_scalar::<f32>()?;
        assert!(sum.is_finite() && sum > 0.0, "{sum}");
    }
    Ok(())
}
