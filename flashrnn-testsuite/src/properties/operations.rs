//! Each operation of [`Real`], as the backend compiles it in a cell, against f64.

use flashrnn_core::{Backend, Cell, Dtype, Element, Error, Gate, Problem, Real, Result, reference};

use crate::case::{Case, rounded};
use crate::random::Random;
use crate::results::Results;
use crate::run::{How, Pass, run};
use crate::suite::{Failures, Suite};

/// The operations, one a variant.
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

const UNARY: [Op; 9] = [
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

const BINARY: [Op; 10] = [
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
    /// Those of two operands that it reads.
    fn operands(self, both: &[f64; 2]) -> &[f64] {
        if UNARY.contains(&self) { &both[..1] } else { both }
    }

    /// How many roundoffs the result may be off, relative to itself.
    fn roundoffs(self) -> f64 {
        match self {
            // Exact, whatever the machine.
            Self::Abs | Self::Neg | Self::Max | Self::Min | Self::Select | Self::Literal => 0.0,
            Self::StopGradient | Self::WithGradientOf => 0.0,
            // One rounding on a CPU; a GPU may be off by 2.5 units in the last place (WGSL's
            // division).
            Self::Add | Self::Sub | Self::Mul | Self::Div | Self::Sqrt => 5.0,
            // A polynomial after range reduction, and what follows it: eight units in the last
            // place.
            _ => 16.0,
        }
    }
}

/// `h' = op(±u, ±v)`. The signs let the gates, which are sums and never -0, reach -0.
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

/// Every operation gives what f64 gives, over the whole range of normal numbers. Results below the
/// smallest of them may be flushed to 0.
pub fn operations<B: Backend>(suite: &Suite<B>) -> Failures {
    both_types(suite, |dtype, cell, operands| {
        let kinds = cell.op.operands(&operands).iter().all(|&x| !special(x) && !denormal(dtype, x));
        kinds.then_some((cell.op.roundoffs(), smallest_normal(dtype)))
    })
}

/// The same for zeros of both signs, infinities and NaN. A device that knows no such numbers skips
/// this.
pub fn operations_on_special_values<B: Backend>(suite: &Suite<B>) -> Failures {
    both_types(suite, |dtype, cell, operands| {
        let operands = cell.op.operands(&operands);
        let kinds =
            operands.iter().any(|&x| special(x)) && !operands.iter().any(|&x| denormal(dtype, x));
        kinds.then_some((cell.op.roundoffs(), smallest_normal(dtype)))
    })
}

/// The same for operands below the smallest normal number. A device that flushes them skips this.
pub fn operations_on_denormals<B: Backend>(suite: &Suite<B>) -> Failures {
    both_types(suite, |dtype, cell, operands| {
        let kinds = cell.op.operands(&operands).iter().any(|&x| denormal(dtype, x));
        kinds.then_some((cell.op.roundoffs(), smallest_normal(dtype)))
    })
}

pub(super) fn special(x: f64) -> bool {
    x == 0.0 || !x.is_finite()
}

fn denormal(dtype: Dtype, x: f64) -> bool {
    x != 0.0 && x.abs() < smallest_normal(dtype)
}

pub(super) fn smallest_normal(dtype: Dtype) -> f64 {
    if dtype == Dtype::F64 { f64::MIN_POSITIVE } else { f32::MIN_POSITIVE as f64 }
}

/// Checks one element: `None` to leave it out, else the roundoffs and the absolute error it may be
/// off.
type Rule = fn(Dtype, &Probe, [f64; 2]) -> Option<(f64, f64)>;

fn both_types<B: Backend>(suite: &Suite<B>, rule: Rule) -> Failures {
    let dtypes = suite.backend.info().dtypes;
    let mut failures = Failures::new();
    for negate in [[false, false], [true, false], [false, true], [true, true]] {
        for op in UNARY.into_iter().filter(|_| !negate[1]).chain(BINARY) {
            let probe = Probe { op, negate };
            if dtypes.contains(&Dtype::F32) {
                failures.extend(forward_failures::<B, f32>(&suite.backend, probe, rule).err());
            }
            if dtypes.contains(&Dtype::F64) {
                failures.extend(forward_failures::<B, f64>(&suite.backend, probe, rule).err());
            }
        }
    }
    failures
}

/// The operands of a unary operation: the range on a logarithmic scale and the middle on a linear
/// one.
pub(super) fn sweep<T: Element>() -> Vec<[f64; 2]> {
    let mut random = Random::new(7);
    let mut values = specials::<T>();
    let exponents = if T::DTYPE == Dtype::F64 { -1074.0..1024.0 } else { -149.0..128.0 };
    for i in 0..2000 {
        let at = (i as f64 + random.uniform()) / 2000.0;
        let magnitude = (exponents.start + at * (exponents.end - exponents.start)).exp2();
        values.extend([magnitude, -magnitude]);
        // exp and sigmoid go from 0 to infinity in here, for f64 too.
        values.push((at - 0.5) * 1500.0);
        values.push((at - 0.5) * 220.0);
        values.push((at - 0.5) * 4.0);
    }
    rounded::<T>(values).into_iter().map(|u| [u, 0.0]).collect()
}

/// The operands of a binary operation: every pair from a list.
fn pairs<T: Element>() -> Vec<[f64; 2]> {
    let mut random = Random::new(8);
    let mut values = specials::<T>();
    values.extend(random.normals(8, 1.0));
    values.extend(random.normals(8, 1e-20));
    values.extend(random.normals(8, 1e15));
    let values = rounded::<T>(values);
    values.iter().flat_map(|&u| values.iter().map(move |&v| [u, v])).collect()
}

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

/// A case with no recurrence and one step in which every unit sees one pair of operands; and that
/// list, filled up.
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

fn forward_failures<B: Backend, T: Element>(
    backend: &B,
    probe: Probe,
    rule: Rule,
) -> std::result::Result<(), String> {
    let operands = if UNARY.contains(&probe.op) { sweep::<T>() } else { pairs::<T>() };
    let (case, operands) = probe_case(operands);
    let what = format!("{probe:?} in {}", T::DTYPE);
    let forward = || {
        let plan = backend.plan::<T, T, _>(&probe, &case.problem)?;
        Pass::<B, T>::forward(backend, &plan, &case, How::default())?.outputs(backend)
    };
    let results = forward().map_err(|error: Error| format!("{what}: {error}"))?;
    let wanted = reference::forward(&probe, &case.problem, &case.inputs)
        .map_err(|error| format!("{what}: {error}"))?;
    let largest = if T::DTYPE == Dtype::F64 { f64::MAX } else { f32::MAX as f64 };
    let mut wrong = Vec::new();
    for ((&operands, &got), &want) in operands.iter().zip(results.get("h")).zip(&wanted.states) {
        let Some((roundoffs, floor)) = rule(T::DTYPE, &probe, operands) else { continue };
        let error = (got - want).abs();
        let good = if want.is_nan() {
            got.is_nan()
        } else if want == 0.0 {
            got == 0.0 && got.is_sign_negative() == want.is_sign_negative()
        } else if want.is_infinite() || T::from_f64(want).to_f64().is_infinite() {
            // Beyond the largest number of T.
            got == want.signum() * f64::INFINITY
        } else {
            // Near the largest number, rounding may overflow.
            let overflow =
                want.abs() > largest * (1.0 - roundoffs * T::ROUNDOFF) && got.is_infinite();
            error <= roundoffs.max(1.0) * T::ROUNDOFF * want.abs() || error <= floor || overflow
        };
        if !good {
            wrong.push(format!(
                "  operands {:e}, {:e}: got {got:e}, wanted {want:e}",
                operands[0], operands[1]
            ));
        }
    }
    report(what, wrong)
}

/// The derivative of every operation, with ordinary operands, agrees with the f64 reference.
pub fn operation_gradients<B: Backend>(suite: &Suite<B>) -> Failures {
    let dtypes = suite.backend.info().dtypes;
    let mut failures = Failures::new();
    for op in UNARY.into_iter().chain(BINARY) {
        let probe = Probe { op, negate: [false, false] };
        if dtypes.contains(&Dtype::F32) {
            failures.extend(gradient_failures::<B, f32>(&suite.backend, probe).err());
        }
        if dtypes.contains(&Dtype::F64) {
            failures.extend(gradient_failures::<B, f64>(&suite.backend, probe).err());
        }
    }
    failures
}

fn gradient_failures<B: Backend, T: Element>(
    backend: &B,
    probe: Probe,
) -> std::result::Result<(), String> {
    let mut random = Random::new(9);
    let positive = matches!(probe.op, Op::Ln | Op::Sqrt);
    let mut operand = || {
        let v = 3.0 * random.normal();
        if positive { v.abs() } else { v }
    };
    // Zeros first: the slopes at the kinks are part of the meaning (abs 0, log_sigmoid a half).
    let mut operands = vec![[if positive { 1.0 } else { 0.0 }, 1.0]];
    operands.extend((0..1000).map(|_| [operand(), operand()]));
    let operands = operands
        .into_iter()
        .map(|[u, v]| [T::from_f64(u).to_f64(), T::from_f64(v).to_f64()])
        .collect();
    let (case, operands) = probe_case(operands);
    let what = format!("gradient of {probe:?} in {}", T::DTYPE);
    let both = || -> Result<_> {
        Ok((run::<B, Probe, T, T>(backend, &probe, &case)?, Results::reference(&probe, &case)?))
    };
    let (got, want) = both().map_err(|error| format!("{what}: {error}"))?;
    let mut wrong = Vec::new();
    let width = case.problem.head_dim;
    for (i, (got, want)) in got.get("d_wx").iter().zip(want.get("d_wx")).enumerate() {
        // A slope is computed from a value near 1 (1 - tanh², σ (1 - σ)), so a few roundoffs of 1
        // may be lost.
        let allowed = 16.0 * T::ROUNDOFF * (1.0 + want.abs());
        let error = (got - want).abs();
        if error.is_nan() || error > allowed {
            let (row, gate, unit) = (i / (2 * width), i / width % 2, i % width);
            let operands = operands[row * width + unit];
            wrong.push(format!(
                "  gate {gate} of operands {operands:?}: got {got:e}, wanted {want:e}"
            ));
        }
    }
    report(what, wrong)
}

/// The first few of many wrong elements.
pub(super) fn report(what: String, wrong: Vec<String>) -> std::result::Result<(), String> {
    if wrong.is_empty() {
        return Ok(());
    }
    let shown = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    Err(format!("{what}: {} elements wrong\n{shown}", wrong.len()))
}
