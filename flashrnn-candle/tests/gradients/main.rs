//! Compares the outputs of the candle operation, and the gradients from candle's `backward()`, with
//! the f64 reference.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, DType, Device, Error, Layout as CandleLayout, Result, Shape, Tensor, Var,
};
use flashrnn::{Cell, Elman, Gate, Gru, Layout, Lstm, Options, Problem, Real, Save, Slstm};
use flashrnn_candle::{Recurrence, SequenceOptions};

#[path = "../devices/mod.rs"]
mod devices;

mod compare;
mod module;
mod stack;

use compare::{F32, F64, Types, compare, noise, relative_error, values, var};

fn compare_cells(
    problem: &Problem,
    options: [bool; 3],
    all_states: bool,
    types: Types,
) -> Result<()> {
    compare(Elman, problem, options, all_states, types)?;
    compare(Gru, problem, options, all_states, types)?;
    compare(Lstm, problem, options, all_states, types)?;
    compare(Slstm, problem, options, all_states, types)
}

#[test]
fn plain() -> Result<()> {
    for types in [F64, F32] {
        compare_cells(&Problem::new(3, 7, 2, 5), [false; 3], false, types)?;
        compare_cells(&Problem::new(1, 1, 1, 1), [false; 3], true, types)?;
    }
    Ok(())
}

#[test]
fn every_optional_input() -> Result<()> {
    for reverse in [false, true] {
        for options in [[true, false, false], [false, true, false], [false, false, true], [true; 3]]
        {
            let problem = Problem::new(4, 6, 2, 3).with(Options { reverse, ..Options::default() });
            compare_cells(&problem, options, false, F64)?;
            compare_cells(&problem, options, true, F32)?;
        }
    }
    Ok(())
}

#[test]
fn every_option() -> Result<()> {
    let base = Problem::new(3, 6, 2, 4);
    for problem in [
        base.with(Options { layout: Layout::TimeMajor, ..base.options }),
        base.with(Options { forward_clip: Some(0.3), ..base.options }),
        base.with(Options { recurrent_grad_clip: Some(0.2), ..base.options }),
        base.with(Options { cut_recurrent_grad: true, ..base.options }),
        base.with(Options { save: Save::Recompute, ..base.options }),
        base.with(Options {
            layout: Layout::TimeMajor,
            reverse: true,
            forward_clip: Some(0.4),
            recurrent_grad_clip: Some(0.3),
            save: Save::Recompute,
            ..base.options
        }),
    ] {
        compare_cells(&problem, [true; 3], false, F64)?;
        compare_cells(&problem, [true; 3], true, F64)?;
    }
    Ok(())
}

#[test]
fn sixteen_bits() -> Result<()> {
    // Half a unit in the last place is 4e-3 in bf16 and 5e-4 in f16, and a few roundings of h
    // accumulate.
    let (bf16, f16) = ((DType::BF16, 1.5e-2), (DType::F16, 2e-3));
    for (wx, tolerance) in [bf16, f16] {
        for weights in [wx, DType::F32] {
            let types = Types { wx, weights, tolerance };
            compare_cells(&Problem::new(3, 5, 2, 4), [true; 3], false, types)?;
            compare_cells(&Problem::new(3, 5, 2, 4), [false; 3], true, types)?;
        }
    }
    Ok(())
}

/// A user's cell, which defines only `forward`.
#[derive(Clone)]
struct Leaky {
    a: f64,
}

impl Cell for Leaky {
    const NAME: &'static str = "leaky";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &[Gate::both("g")];
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 1];
    #[inline(always)]
    fn forward<R: Real>(&self, [h]: [R; 1], [g]: [R; 1]) -> [R; 1] {
        [h + R::lit(self.a) * (g.tanh() - h)]
    }
}

#[test]
fn custom_cell() -> Result<()> {
    compare(Leaky { a: 0.3 }, &Problem::new(2, 9, 3, 4), [true; 3], false, F64)
}

#[test]
fn two_forwards_before_one_backward() -> Result<()> {
    let device = &Device::Cpu;
    let r = var(&noise(4 * 2 * 9, 1, 0.6), &[4, 2, 3, 3], DType::F64)?;
    let b = Var::zeros((4, 2, 3), DType::F64, device)?;
    let inputs =
        [2, 3].map(|seed| var(&noise(2 * 5 * 24, seed, 1.0), &[2, 5, 4, 2, 3], DType::F64));
    let [first, second] = inputs;
    let (first, second) = (first?, second?);
    let rnn = Recurrence::new(Slstm);
    let loss =
        |wx: &Tensor| rnn.forward(wx, &r, &b, &SequenceOptions::default())?.h.sqr()?.sum_all();
    // Differentiates both at once, and each alone.
    let both = (loss(&first)? + loss(&second)?)?;
    let grads = both.backward()?;
    let (alone_1, alone_2) = (loss(&first)?.backward()?, loss(&second)?.backward()?);
    let get = |grads: &candle_core::backprop::GradStore, x: &Tensor| {
        grads.get(x).cloned().ok_or_else(|| candle_core::Error::msg("no gradient"))
    };
    assert_eq!(values(&get(&grads, &first)?)?, values(&get(&alone_1, &first)?)?);
    assert_eq!(values(&get(&grads, &second)?)?, values(&get(&alone_2, &second)?)?);
    let sum = (get(&alone_1, &r)? + get(&alone_2, &r)?)?;
    // Equal bits, since the sum of two numbers does not depend on their order.
    assert_eq!(values(&get(&grads, &r)?)?, values(&sum)?);
    // Differentiates the same graph again.
    assert_eq!(values(&get(&both.backward()?, &r)?)?, values(&sum)?);
    Ok(())
}

/// An operation whose backward pass fails once.
struct FailsOnce(AtomicBool);

impl CustomOp1 for FailsOnce {
    fn name(&self) -> &'static str {
        "fails once"
    }

    fn cpu_fwd(&self, values: &CpuStorage, layout: &CandleLayout) -> Result<(CpuStorage, Shape)> {
        Ok((values.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, d: &Tensor) -> Result<Option<Tensor>> {
        if self.0.swap(false, Ordering::SeqCst) {
            return Err(Error::msg("failed once"));
        }
        Ok(Some(d.clone()))
    }
}

#[test]
fn a_failed_backward_pass_leaves_no_gradient_to_the_next() -> Result<()> {
    let wx = var(&noise(2 * 5 * 6, 1, 1.0), &[2, 5, 1, 2, 3], DType::F64)?;
    let r = var(&noise(18, 2, 0.5), &[1, 2, 3, 3], DType::F64)?;
    let b = Var::zeros((1, 2, 3), DType::F64, &Device::Cpu)?;
    let run = || Recurrence::new(Elman).forward(&wx, &r, &b, &SequenceOptions::default());
    let d_r = |loss: &Tensor| -> Result<Vec<f64>> {
        values(loss.backward()?.get(&r).ok_or_else(|| Error::msg("no gradient"))?)
    };
    let want = d_r(&run()?.last.sum_all()?)?;
    // Whichever of the two terms candle differentiates first, once it is that of h.
    for h_first in [false, true] {
        let out = run()?;
        let (h, last) = (out.h.sum_all()?, out.last.apply_op1(FailsOnce(true.into()))?.sum_all()?);
        let both = if h_first { (h + last)? } else { (last + h)? };
        assert!(both.backward().is_err());
        assert_eq!(d_r(&out.last.sum_all()?)?, want);
        assert_ne!(d_r(&both)?, want);
        assert_eq!(d_r(&out.last.sum_all()?)?, want);
    }
    Ok(())
}

#[test]
fn threads_may_differentiate_one_graph() -> Result<()> {
    let wx = var(&noise(2 * 40 * 6, 1, 1.0), &[2, 40, 1, 2, 3], DType::F64)?;
    let r = var(&noise(18, 2, 0.5), &[1, 2, 3, 3], DType::F64)?;
    let b = Var::zeros((1, 2, 3), DType::F64, &Device::Cpu)?;
    let out = Recurrence::new(Elman).forward(&wx, &r, &b, &SequenceOptions::default())?;
    let losses = [out.h.sqr()?.sum_all()?, out.h.sin()?.sum_all()?, out.last.sum_all()?];
    let d_r = |loss: &Tensor| -> Result<Vec<f64>> {
        values(loss.backward()?.get(&r).ok_or_else(|| Error::msg("no gradient"))?)
    };
    let want = losses.iter().map(d_r).collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let check = |i: usize| (0..200).all(|_| d_r(&losses[i]).is_ok_and(|got| got == want[i]));
        let threads = [0, 1, 2].map(|i| scope.spawn(move || check(i)));
        assert!(threads.into_iter().all(|thread| thread.join().expect("no panic")));
    });
    Ok(())
}

#[test]
fn chunks_joined_by_last_agree_with_one_pass() -> Result<()> {
    let (batch, time, heads, dim) = (2, 8, 2, 3);
    let wx = var(
        &noise(batch * time * 4 * heads * dim, 1, 1.0),
        &[batch, time, 4, heads, dim],
        DType::F64,
    )?;
    let r = var(&noise(4 * heads * dim * dim, 2, 0.6), &[4, heads, dim, dim], DType::F64)?;
    let b = Var::zeros((4, heads, dim), DType::F64, &Device::Cpu)?;
    let rnn = Recurrence::new(Lstm);
    let whole = rnn.forward(&wx, &r, &b, &SequenceOptions::default())?;
    let d_whole = whole.h.sqr()?.sum_all()?.backward()?;
    // The narrowed wx is not contiguous.
    let first = rnn.forward(&wx.narrow(1, 0, 5)?, &r, &b, &SequenceOptions::default())?;
    let optional = SequenceOptions { s0: Some(&first.last), ..SequenceOptions::default() };
    let second = rnn.forward(&wx.narrow(1, 5, 3)?, &r, &b, &optional)?;
    let d_chunks = (first.h.sqr()?.sum_all()? + second.h.sqr()?.sum_all()?)?.backward()?;
    assert_eq!(values(&whole.h)?, values(&Tensor::cat(&[first.h, second.h], 1)?)?);
    for x in [&wx, &r, &b] {
        let (Some(whole), Some(chunks)) = (d_whole.get(x), d_chunks.get(x)) else {
            panic!("no gradient")
        };
        // The weight gradient is summed in two parts, so in a different order.
        assert!(relative_error(&values(chunks)?, &values(whole)?) < 1e-13);
    }
    Ok(())
}

#[test]
fn no_time_steps() -> Result<()> {
    let wx = Var::zeros((2, 0, 3, 1, 4), DType::F32, &Device::Cpu)?;
    let r = Var::zeros((3, 1, 4, 4), DType::F32, &Device::Cpu)?;
    let b = Var::zeros((4, 1, 4), DType::F32, &Device::Cpu)?;
    let s0 = var(&noise(8, 1, 1.0), &[1, 2, 1, 4], DType::F32)?;
    let optional = SequenceOptions { s0: Some(&s0), ..SequenceOptions::default() };
    let out = Recurrence::new(Gru).forward(&wx, &r, &b, &optional)?;
    assert_eq!(out.h.dims(), [2, 0, 1, 4]);
    assert_eq!(values(&out.last)?, values(&s0)?);
    let grads = out.last.sum_all()?.backward()?;
    assert_eq!(grads.get(&s0).map(values).transpose()?, Some(vec![1.0; 8]));
    Ok(())
}

#[test]
fn empty_batch() -> Result<()> {
    let wx = Var::zeros((0, 5, 4, 2, 3), DType::F32, &Device::Cpu)?;
    let r = var(&noise(72, 1, 0.5), &[4, 2, 3, 3], DType::F32)?;
    let b = Var::zeros((4, 2, 3), DType::F32, &Device::Cpu)?;
    let s0 = Var::zeros((2, 0, 2, 3), DType::F32, &Device::Cpu)?;
    let lengths = Tensor::zeros(0, DType::U32, &Device::Cpu)?;
    for (s0, lengths) in [(None, None), (Some(s0.as_tensor()), Some(&lengths))] {
        let options = SequenceOptions { s0, lengths, ..SequenceOptions::default() };
        let out = Recurrence::new(Lstm).all_states(true).forward(&wx, &r, &b, &options)?;
        assert_eq!((out.h.dims(), out.last.dims()), (&[0, 5, 2, 3][..], &[2, 0, 2, 3][..]));
        assert_eq!(out.states.as_ref().map(Tensor::dims), Some(&[2, 0, 5, 2, 3][..]));
        let grads = (out.h.sum_all()? + out.last.sum_all()?)?.backward()?;
        assert_eq!(grads.get(&r).map(values).transpose()?, Some(vec![0.0; 72]));
        assert_eq!(grads.get(&wx).map(Tensor::dims), Some(wx.dims()));
    }
    Ok(())
}

#[test]
fn errors_name_the_tensor() -> Result<()> {
    let device = &Device::Cpu;
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, device);
    let wx = zeros(&[2, 3, 4, 1, 5], DType::F32)?;
    let (r, b) = (zeros(&[4, 1, 5, 5], DType::F32)?, zeros(&[4, 1, 5], DType::F32)?);
    let none = SequenceOptions::default();
    let rnn = Recurrence::new(Lstm);
    let fails = |result: Result<flashrnn_candle::Output>, wanted: &str| {
        let text = result.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains(wanted), "{text:?} does not contain {wanted:?}");
    };
    fails(rnn.forward(&zeros(&[2, 3, 20], DType::F32)?, &r, &b, &none), "wx: got shape [2, 3, 20]");
    fails(
        rnn.forward(&zeros(&[2, 3, 3, 1, 5], DType::F32)?, &r, &b, &none),
        "wx: got shape [2, 3, 3, 1, 5]",
    );
    fails(rnn.forward(&wx.to_dtype(DType::U8)?, &r, &b, &none), "wx is U8");
    fails(rnn.forward(&wx, &r.to_dtype(DType::F64)?, &b, &none), "r is F64");
    fails(rnn.forward(&wx, &r, &b.to_dtype(DType::BF16)?, &none), "b is BF16");
    fails(rnn.forward(&wx, &r.narrow(0, 0, 3)?, &b, &none), "r: got shape [3, 1, 5, 5]");
    fails(rnn.forward(&zeros(&[2, 3, 4, 0, 5], DType::F32)?, &r, &b, &none), "heads");
    let lengths = Tensor::new(&[1i64, 4], device)?;
    fails(
        rnn.forward(&wx, &r, &b, &SequenceOptions { lengths: Some(&lengths), ..none }),
        "lengths[1] is 4",
    );
    let lengths = Tensor::new(&[-1i64, 3], device)?;
    fails(
        rnn.forward(&wx, &r, &b, &SequenceOptions { lengths: Some(&lengths), ..none }),
        "lengths[0] is -1",
    );
    let lengths = Tensor::new(&[1f32, 3.0], device)?;
    fails(
        rnn.forward(&wx, &r, &b, &SequenceOptions { lengths: Some(&lengths), ..none }),
        "integer",
    );
    let resets = zeros(&[3, 2], DType::U8)?;
    fails(
        rnn.forward(&wx, &r, &b, &SequenceOptions { resets: Some(&resets), ..none }),
        "resets: got shape [3, 2]",
    );
    let s0 = zeros(&[1, 2, 1, 5], DType::F32)?;
    fails(rnn.forward(&wx, &r, &b, &SequenceOptions { s0: Some(&s0), ..none }), "s0: got shape");
    let clipped =
        Recurrence::new(Lstm).with(Options { forward_clip: Some(f64::NAN), ..Options::default() });
    fails(clipped.forward(&wx, &r, &b, &none), "forward_clip");
    Ok(())
}
