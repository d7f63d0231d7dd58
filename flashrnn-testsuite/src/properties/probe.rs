//! A cell that computes one operation of [`Real`], with operands to test it on.

use flashrnn_core::{Cell, Dtype, Element, Gate, Problem, Real, reference};

use crate::case::{Case, rounded};
use crate::random::Random;

/// An operation of [`Real`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Op {
    Exp,
    Ln,
    Sqrt,
    Abs,
    Tanh,
    SoftplusNegAbs,
    Sigmoid,
    LogSigmoid,
    Neg,
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
    Select,
    Literal,
    StopGradient,
    WithGradientOf,
}

pub(super) const UNARY: [Op; 9] = [
    Op::Exp,
    Op::Ln,
    Op::Sqrt,
    Op::Abs,
    Op::Tanh,
    Op::SoftplusNegAbs,
    Op::Sigmoid,
    Op::LogSigmoid,
    Op::Neg,
];

pub(super) const BINARY: [Op; 10] = [
    Op::Add,
    Op::Sub,
    Op::Mul,
    Op::Div,
    Op::Max,
    Op::Min,
    Op::Select,
    Op::Literal,
    Op::StopGradient,
    Op::WithGradientOf,
];

impl Op {
    /// Returns the operands in `both` that the operation reads.
    pub(super) fn operands(self, both: &[f64; 2]) -> &[f64] {
        if UNARY.contains(&self) { &both[..1] } else { both }
    }

    /// Returns the allowed relative error of the result, in roundoffs.
    pub(super) fn roundoffs(self) -> f64 {
        match self {
            // Exact on every machine.
            Self::Abs | Self::Neg | Self::Max | Self::Min | Self::Select | Self::Literal => 0.0,
            Self::StopGradient | Self::WithGradientOf => 0.0,
            // CPUs round correctly; GPUs may be off by up to 2.5 units in the last place (division
            // in WGSL).
            Self::Add | Self::Sub | Self::Mul | Self::Div | Self::Sqrt => 5.0,
            // Range reduction, a polynomial and the operations after it cost up to eight units in
            // the last place.
            _ => 16.0,
        }
    }
}

/// The cell `h' = op(±u, ±v)`. The signs are needed for operands of -0, since gates are sums and
/// never -0 themselves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) op: Op,
    pub(super) negate: [bool; 2],
}

impl Cell for Probe {
    const NAME: &'static str = "probe";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &[Gate::both("u"), Gate::external("v")];
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 2];

    #[inline(always)]
    fn forward<R: Real>(&self, _: [R; 1], [u, v]: [R; 2]) -> [R; 1] {
        let u = if self.negate[0] { -u } else { u };
        let v = if self.negate[1] { -v } else { v };
        [match self.op {
            Op::Exp => u.exp(),
            Op::Ln => u.ln(),
            Op::Sqrt => u.sqrt(),
            Op::Abs => u.abs(),
            Op::Tanh => u.tanh(),
            Op::SoftplusNegAbs => u.softplus_neg_abs(),
            Op::Sigmoid => u.sigmoid(),
            Op::LogSigmoid => u.log_sigmoid(),
            Op::Neg => -u,
            Op::Add => u + v,
            Op::Sub => u - v,
            Op::Mul => u * v,
            Op::Div => u / v,
            Op::Max => u.clamp_min(v),
            Op::Min => u.clamp_max(v),
            Op::Select => R::select(u.gt(v), u, v),
            Op::Literal => R::select(u.gt(R::lit(0.75)), R::lit(-1.5), v),
            Op::StopGradient => R::select(u.gt(v), u.stop_gradient(), v),
            Op::WithGradientOf => u.with_gradient_of(v),
        }]
    }
}

/// Returns whether `x` is a zero, an infinity or NaN.
pub(super) fn special(x: f64) -> bool {
    x == 0.0 || !x.is_finite()
}

/// Returns whether `x` is subnormal in `dtype`.
pub(super) fn subnormal(dtype: Dtype, x: f64) -> bool {
    x != 0.0 && x.abs() < smallest_normal(dtype)
}

/// Returns the smallest normal number of `dtype`, which is f32 or f64.
pub(super) fn smallest_normal(dtype: Dtype) -> f64 {
    if dtype == Dtype::F64 { f64::MIN_POSITIVE } else { f32::MIN_POSITIVE as f64 }
}

/// Returns the operands of a unary operation: the whole range on a logarithmic scale, and its
/// middle on a linear one.
pub(super) fn sweep<T: Element>() -> Vec<[f64; 2]> {
    let mut random = Random::new(7);
    let mut values = specials::<T>();
    let exponents = if T::DTYPE == Dtype::F64 { -1074.0..1024.0 } else { -149.0..128.0 };
    for i in 0..2000 {
        let at = (i as f64 + random.uniform()) / 2000.0;
        let magnitude = (exponents.start + at * (exponents.end - exponents.start)).exp2();
        values.extend([magnitude, -magnitude]);
        // These ranges cover exp and sigmoid from underflow to overflow, in f64 too.
        values.push((at - 0.5) * 1500.0);
        values.push((at - 0.5) * 220.0);
        values.push((at - 0.5) * 4.0);
    }
    rounded::<T>(values).into_iter().map(|u| [u, 0.0]).collect()
}

/// Returns the operands of a binary operation: every pair from a list of numbers.
pub(super) fn pairs<T: Element>() -> Vec<[f64; 2]> {
    let mut random = Random::new(8);
    let mut values = specials::<T>();
    values.extend(random.normals(8, 1.0));
    values.extend(random.normals(8, 1e-20));
    values.extend(random.normals(8, 1e15));
    let values = rounded::<T>(values);
    values.iter().flat_map(|&u| values.iter().map(move |&v| [u, v])).collect()
}

/// Returns zeros, infinities, NaN, and numbers at the ends of the range and around 1.
fn specials<T: Element>() -> Vec<f64> {
    let (min, max, tiny) = if T::DTYPE == Dtype::F64 {
        (f64::MIN_POSITIVE, f64::MAX, f64::from_bits(1))
    } else {
        (f32::MIN_POSITIVE as f64, f32::MAX as f64, f32::from_bits(1) as f64)
    };
    let next = 1.0 + 2.0 * T::ROUNDOFF;
    let positive =
        [min, max, tiny, 3.0 * tiny, min / 2.0, 1.0, next, 2.0 - next, 0.5, 0.75, 2.0, 1e-4, 1e-9];
    let mut values = vec![0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    values.extend(positive.iter().flat_map(|&v| [v, -v]));
    values
}

/// Makes a case without recurrence and with one step, in which every unit applies the operation to
/// one pair of operands. Also returns the list of pairs, padded to a multiple of the head
/// dimension.
pub(super) fn probe_case(mut operands: Vec<[f64; 2]>) -> (Case, Vec<[f64; 2]>) {
    let width = 37;
    while !operands.len().is_multiple_of(width) {
        operands.push([1.0, 1.0]);
    }
    let rows = operands.len() / width;
    // wx: [B, 1, 2, 1, D]
    let gate = |k: usize| move |pair: &[f64; 2]| pair[k];
    let wx = operands
        .chunks(width)
        .flat_map(|row| row.iter().map(gate(0)).chain(row.iter().map(gate(1))))
        .collect();
    let inputs = reference::Inputs {
        wx,
        r: vec![0.0; width * width],
        b: vec![0.0; 2 * width],
        ..reference::Inputs::default()
    };
    let d = reference::OutputGradients { d_states: Some(vec![1.0; rows * width]), d_last: None };
    (Case { problem: Problem::new(rows, 1, 1, width), inputs, d }, operands)
}

/// Formats the first few wrong elements as an error.
pub(super) fn report(what: String, wrong: Vec<String>) -> std::result::Result<(), String> {
    if wrong.is_empty() {
        return Ok(());
    }
    let shown = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    Err(format!("{what}: {} elements wrong\n{shown}", wrong.len()))
}
