//! Compares one case of the candle operation with the f64 reference.

use candle_core::{DType, Device, Result, Tensor, Var};
use flashrnn::reference::{self, Gradients, Inputs, OutputGradients, Outputs};
use flashrnn::{Cell, Problem};
use flashrnn_candle::{Recurrence, SequenceOptions};

use crate::devices::devices;

/// Returns pseudorandom numbers in ±scale, the same for the same seed.
pub fn noise(len: usize, seed: u64, scale: f64) -> Vec<f64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len).map(|_| scale * (2.0 * next() - 1.0)).collect()
}

pub fn var(data: &[f64], dims: &[usize], dtype: DType) -> Result<Var> {
    var_on(&Device::Cpu, data, dims, dtype)
}

pub fn var_on(device: &Device, data: &[f64], dims: &[usize], dtype: DType) -> Result<Var> {
    let tensor = Tensor::from_slice(data, dims, &Device::Cpu)?.to_dtype(dtype)?;
    Var::from_tensor(&tensor.to_device(device)?)
}

pub fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Returns the relative error, norm over norm.
pub fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
    if error == 0.0 { 0.0 } else { error / norm(&mut want.iter().copied()) }
}

/// The element types of a case, and the allowed relative error.
#[derive(Clone, Copy)]
pub struct Types {
    pub wx: DType,
    pub weights: DType,
    pub tolerance: f64,
}

/// Sums are computed in a different order than in the reference: about ten roundings of 1e-16,
/// hardly amplified.
pub const F64: Types = Types { wx: DType::F64, weights: DType::F64, tolerance: 1e-11 };
/// Backpropagation over a dozen steps of a small network amplifies f32's rounding error of 6e-8
/// less than a hundredfold.
pub const F32: Types = Types { wx: DType::F32, weights: DType::F32, tolerance: 5e-6 };

impl Types {
    /// Returns the type of the initial and final states.
    fn wide(&self) -> DType {
        if self.wx == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// Returns the types to test on `device`. GPUs have no f64.
    pub fn on(self, device: &Device) -> Self {
        if self.wx == DType::F64 && !device.is_cpu() { F32 } else { self }
    }
}

/// The variables of a case.
struct Variables {
    wx: Var,
    r: Var,
    b: Var,
    s0: Var,
}

impl Variables {
    fn new<C: Cell>(device: &Device, cell: &C, problem: &Problem, types: Types) -> Result<Self> {
        let make = |dims: &[usize], seed, scale, dtype| make(device, dims, seed, scale, dtype);
        let shapes = problem.shapes::<C>().map_err(candle_core::Error::wrap)?;
        let wx = make(&shapes.wx(), 1, 1.5, types.wx)?;
        let r = make(&shapes.r(), 2, 0.7, types.weights)?;
        let b = make(&shapes.b(), 3, 0.5, types.weights)?;
        // The initial state is the final state of another run, as arbitrary ones are not valid for
        // sLSTM.
        let earlier_dims = [problem.batch, 3, shapes.external, problem.heads, problem.head_dim];
        let earlier_wx = make(&earlier_dims, 4, 1.0, types.wx)?;
        let earlier = Recurrence::new(cell.clone()).forward(
            &earlier_wx,
            &r,
            &b,
            &SequenceOptions::default(),
        )?;
        let s0 = Var::from_tensor(&earlier.last.detach())?;
        Ok(Self { wx, r, b, s0 })
    }
}

/// Makes a variable of pseudorandom numbers, rounded to `dtype`.
fn make(device: &Device, dims: &[usize], seed: u64, scale: f64, dtype: DType) -> Result<Var> {
    var_on(device, &noise(dims.iter().product(), seed, scale), dims, dtype)
}

/// Runs the reference forward and backward. `d_head` is the gradient of h or of all states.
fn run_reference<C: Cell>(
    cell: &C,
    problem: &Problem,
    inputs: &Inputs,
    d_head: Vec<f64>,
    d_last: Vec<f64>,
) -> flashrnn::Result<(Outputs, Gradients)> {
    let out = reference::forward(cell, problem, inputs)?;
    let mut d_states = d_head;
    d_states.resize(out.states.len(), 0.0); // h comes first among the states
    let d = OutputGradients { d_states: Some(d_states), d_last: Some(d_last) };
    let grads = reference::backward(cell, problem, inputs, &out, &d)?;
    Ok((out, grads))
}

/// Compares one case on every device.
pub fn compare<C: Cell>(
    cell: C,
    problem: &Problem,
    options: [bool; 3],
    all_states: bool,
    types: Types,
) -> Result<()> {
    for device in devices() {
        compare_on(device, &cell, problem, options, all_states, types.on(device))?;
    }
    Ok(())
}

/// Compares one case. The loss is a weighted sum of the outputs, and its gradients are the incoming
/// gradients of the reference.
fn compare_on<C: Cell>(
    device: &Device,
    cell: &C,
    problem: &Problem,
    options: [bool; 3],
    all_states: bool,
    types: Types,
) -> Result<()> {
    let shapes = problem.shapes::<C>().map_err(candle_core::Error::wrap)?;
    let [with_s0, with_lengths, with_resets] = options;
    let Variables { wx, r, b, s0 } = Variables::new(device, cell, problem, types)?;
    let lengths: Vec<i64> =
        (0..problem.batch).map(|i| ((i * 5) % (problem.time + 1)) as i64).collect();
    let resets: Vec<u8> = (0..problem.batch * problem.time).map(|i| u8::from(i % 5 == 3)).collect();
    let lengths_tensor = Tensor::new(lengths.as_slice(), device)?;
    let resets_tensor = Tensor::from_slice(&resets, shapes.resets().as_slice(), device)?;

    let rnn = Recurrence::new(cell.clone()).with(problem.options).all_states(all_states);
    let optional = SequenceOptions {
        s0: with_s0.then_some(s0.as_tensor()),
        lengths: with_lengths.then_some(&lengths_tensor),
        resets: with_resets.then_some(&resets_tensor),
    };
    let out = rnn.forward(&wx, &r, &b, &optional)?;

    // loss = Σ d_head · (h or states) + Σ d_last · last
    let head = out.states.as_ref().unwrap_or(&out.h);
    let wide = types.wide();
    let d_head = make(device, head.dims(), 5, 1.0, types.wx)?.as_tensor().detach();
    let d_last = make(device, out.last.dims(), 6, 1.0, wide)?.as_tensor().detach();
    let weigh = |x: &Tensor, d: &Tensor| (x.to_dtype(wide)? * d.to_dtype(wide)?)?.sum_all();
    let loss = (weigh(head, &d_head)? + weigh(&out.last, &d_last)?)?;
    let grads = loss.backward()?;

    let inputs = Inputs {
        wx: values(&wx)?,
        r: values(&r)?,
        b: values(&b)?,
        s0: if with_s0 { Some(values(&s0)?) } else { None },
        lengths: with_lengths.then(|| lengths.iter().map(|&n| n as i32).collect()),
        resets: with_resets.then_some(resets),
        ..Inputs::default()
    };
    let (want, want_grads) =
        run_reference(cell, problem, &inputs, values(&d_head)?, values(&d_last)?)
            .map_err(candle_core::Error::wrap)?;

    let h_len = out.h.elem_count();
    let mut pairs = vec![
        ("h", values(&out.h)?, &want.states[..h_len]),
        ("last", values(&out.last)?, &want.last[..]),
    ];
    if let Some(states) = &out.states {
        pairs.push(("states", values(states)?, &want.states));
    }
    let gradients = [
        ("d_wx", &wx, &want_grads.d_wx),
        ("d_r", &r, &want_grads.d_r),
        ("d_b", &b, &want_grads.d_b),
        ("d_s0", &s0, &want_grads.d_s0),
    ];
    for (name, var, want) in gradients {
        if name == "d_s0" && !with_s0 {
            assert!(grads.get(var).is_none());
            continue;
        }
        let got = grads.get(var).unwrap_or_else(|| panic!("{name}: no gradient"));
        assert_eq!((got.dims(), got.dtype()), (var.dims(), var.dtype()), "{name}");
        pairs.push((name, values(got)?, want));
    }
    let case = format!("{} {problem:?} {options:?} {:?} on {device:?}", C::NAME, types.wx);
    assert_near(&case, types.tolerance, &pairs);
    Ok(())
}

/// Asserts that the relative error of each value is within `tolerance`.
fn assert_near(case: &str, tolerance: f64, pairs: &[(&str, Vec<f64>, &[f64])]) {
    for (name, got, want) in pairs {
        let error = relative_error(got, want);
        assert!(error <= tolerance, "{case}: {name} has a relative error of {error:e}");
    }
}
