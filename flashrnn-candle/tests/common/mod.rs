//! Compares the outputs and gradients of the operation, and of a module, on a GPU with those on the
//! CPU.

use candle_core::{DType, Device, Error, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use flashrnn::{AnyBackend, Cell, CellSizes, Elman, Gru, Lstm, Options, Save, Slstm};
use flashrnn_candle::{Output, Recurrence, Rnn, RnnConfig, SequenceOptions};

const SIZES: [usize; 4] = [5, 11, 2, 24]; // B, T, N, D

/// The variables of a call: wx, r, b, s0.
struct Variables([Var; 4]);

impl Variables {
    fn new<C: Cell>(dtype: DType) -> Result<Self> {
        let [batch, time, heads, head_dim] = SIZES;
        let (recurrent, external) = (C::GR, C::GX);
        // Evenly distributed over ±√3 standard deviations, and the same in every run.
        let make = |deviation: f64, shape: &[usize], dtype| -> Result<Var> {
            let len = shape.iter().product::<usize>();
            let spread = |i: usize| {
                (i as f64 * 0.618_033_988_749_895 + (i as f64).sqrt()).fract() * 2.0 - 1.0
            };
            let values: Vec<f64> = (0..len).map(|i| 3_f64.sqrt() * deviation * spread(i)).collect();
            Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?)
        };
        let (gates, states) = (C::GATES.len(), C::S);
        // A random initial state is not valid for sLSTM.
        let deviation = if C::NAME == "slstm" { 0.0 } else { 1.0 };
        Ok(Self([
            make(1.0, &[batch, time, external, heads, head_dim], dtype)?,
            make(0.2, &[recurrent, heads, head_dim, head_dim], dtype)?,
            make(1.0, &[gates, heads, head_dim], dtype)?,
            make(deviation, &[states, batch, heads, head_dim], DType::F32)?,
        ]))
    }

    /// Returns h, last, and the gradients of a loss on both, all in f32.
    fn run<C: Cell>(&self, rnn: &Recurrence<C>) -> Result<Vec<Tensor>> {
        let [batch, time, ..] = SIZES;
        let Self([wx, r, b, s0]) = self;
        let lengths = Tensor::new(&[11_u32, 0, 3, 10, 11][..batch], &Device::Cpu)?;
        let resets = (0..batch * time).map(|i| u8::from(i % 7 == 3)).collect();
        let resets = Tensor::from_vec(resets, (batch, time), &Device::Cpu)?;
        let optional =
            SequenceOptions { s0: Some(s0), lengths: Some(&lengths), resets: Some(&resets) };
        let Output { h, last, states } = rnn.forward(wx, r, b, &optional)?;
        // Uses only h of the final state, since the other states of sLSTM have discontinuities.
        let mut loss =
            (h.to_dtype(DType::F32)?.sin()?.sum_all()? + last.get(0)?.sqr()?.sum_all()?)?;
        if let Some(states) = states {
            loss = (loss + states.get(0)?.to_dtype(DType::F32)?.sqr()?.sum_all()?)?;
        }
        let grads = loss.backward()?;
        let mut results = vec![h, last];
        for var in [wx, r, b, s0] {
            results.extend(grads.get(var).cloned());
        }
        results.iter().map(|tensor| tensor.to_dtype(DType::F32)?.flatten_all()).collect()
    }
}

/// Asserts that the relative error, norm over norm, is within `allowed`.
fn assert_near(name: &str, got: &Tensor, want: &Tensor, allowed: f32) -> Result<()> {
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>().map(f32::sqrt);
    let (off, size) = (norm(&(got - want)?)?, norm(want)?);
    println!("{name}: {off:.1e} of {size:.1e}");
    assert!(off <= allowed * size, "{name}");
    Ok(())
}

/// Compares a module of two layers in both directions.
fn check_module<C: Cell + Default>(gpu: &AnyBackend) -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let config = RnnConfig { layers: 2, bidirectional: true, heads: 2, ..RnnConfig::default() };
    let on_cpu = Rnn::<C>::new(3, 16, config, vb)?;
    let on_gpu = on_cpu.clone().on(gpu);
    let x = Tensor::arange(0f32, 105.0, &Device::Cpu)?.sin()?.reshape((5, 7, 3))?;
    let lengths = Tensor::new(&[7u32, 0, 3, 6, 7], &Device::Cpu)?;
    let resets = Tensor::from_iter((0..35).map(|i| u8::from(i % 5 == 3)), &Device::Cpu)?;
    let resets = resets.reshape((5, 7))?;
    let options =
        SequenceOptions { lengths: Some(&lengths), resets: Some(&resets), ..Default::default() };
    let run = |rnn: &Rnn<C>| {
        let out = rnn.forward(&x, &options, true)?;
        let grads = out.h.sqr()?.sum_all()?.backward()?;
        Ok::<_, Error>((out, grads))
    };
    let ((want, want_grads), (got, grads)) = (run(&on_cpu)?, run(&on_gpu)?);
    // Twice the allowed relative error of one backend, through two layers.
    let near = |name: &str, got: &Tensor, want: &Tensor| {
        assert_near(&format!("module of {} {name}", C::NAME), got, want, 2e-5)
    };
    near("h", &got.h, &want.h)?;
    near("last", &got.last, &want.last)?;
    for (name, var) in vars.data().lock().expect("no panic").iter() {
        let [got, want] = [&grads, &want_grads].map(|grads| grads.get(var).expect("a gradient"));
        near(name, got, want)?;
    }
    Ok(())
}

fn check<C: Cell>(gpu: &AnyBackend, cell: C) -> Result<()> {
    // Twice the allowed relative error of one backend, `flashrnn_testsuite::tolerance`.
    for (dtype, allowed) in [(DType::F32, 1e-5), (DType::BF16, 3e-2)] {
        for (save, all_states) in [(Save::Gates, false), (Save::Recompute, true)] {
            let variables = Variables::new::<C>(dtype)?;
            let options = Options { save, ..Options::default() };
            let on_cpu = Recurrence::new(cell.clone()).with(options).all_states(all_states);
            let on_gpu =
                Recurrence::on(gpu.clone(), cell.clone()).with(options).all_states(all_states);
            let (on_cpu, on_gpu) = (variables.run(&on_cpu)?, variables.run(&on_gpu)?);
            assert_eq!((on_cpu.len(), on_gpu.len()), (6, 6), "h, last and four gradients");
            for (i, (want, got)) in on_cpu.iter().zip(&on_gpu).enumerate() {
                let name = ["h", "last", "d_wx", "d_r", "d_b", "d_s0"][i];
                assert_near(&format!("{} {dtype:?} {save:?} {name}", C::NAME), got, want, allowed)?;
            }
        }
    }
    Ok(())
}

/// Checks every cell on `gpu`.
pub fn agrees_with_the_cpu(gpu: &AnyBackend) -> Result<()> {
    check(gpu, Elman)?;
    check(gpu, Gru)?;
    check(gpu, Lstm)?;
    check(gpu, Slstm)?;
    check_module::<Gru>(gpu)?;
    // Not sLSTM: from a state of zeros, the bias of i scales c and n alike and cancels in h, so its
    // gradient is nothing but rounding.
    check_module::<Lstm>(gpu)
}
