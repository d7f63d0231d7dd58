//! Compares each operation of [`Real`](flashrnn_core::Real), compiled by the backend as part of a
//! cell, with f64.

use flashrnn_core::{Backend, Dtype, Element, Error, Result, reference};

use super::probe::{
    BINARY, Op, Probe, UNARY, pairs, probe_case, report, smallest_normal, special, subnormal, sweep,
};
use crate::random::Random;
use crate::results::Results;
use crate::run::{CallOptions, ForwardPass, run};
use crate::suite::{Failures, Suite};

/// Every operation agrees with f64 over the whole range of normal numbers. Subnormal results may be
/// flushed to 0.
pub fn operations<B: Backend>(suite: &Suite<B>) -> Failures {
    both_types(suite, |dtype, cell, operands| {
        let kinds =
            cell.op.operands(&operands).iter().all(|&x| !special(x) && !subnormal(dtype, x));
        kinds.then_some((cell.op.roundoffs(), smallest_normal(dtype)))
    })
}

/// Every operation agrees with f64 on zeros of both signs, infinities and NaN. Devices that do not
/// implement these values skip the property.
pub fn operations_on_special_values<B: Backend>(suite: &Suite<B>) -> Failures {
    both_types(suite, |dtype, cell, operands| {
        let operands = cell.op.operands(&operands);
        let kinds =
            operands.iter().any(|&x| special(x)) && !operands.iter().any(|&x| subnormal(dtype, x));
        kinds.then_some((cell.op.roundoffs(), smallest_normal(dtype)))
    })
}

/// Every operation agrees with f64 on subnormal operands. Devices that flush them skip the
/// property.
pub fn operations_on_subnormals<B: Backend>(suite: &Suite<B>) -> Failures {
    both_types(suite, |dtype, cell, operands| {
        let kinds = cell.op.operands(&operands).iter().any(|&x| subnormal(dtype, x));
        kinds.then_some((cell.op.roundoffs(), smallest_normal(dtype)))
    })
}

/// Returns the allowed error of one element, as a number of roundoffs and an absolute bound, or
/// `None` to ignore the element.
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
        ForwardPass::<B, T>::forward(backend, &plan, &case, CallOptions::default())?
            .outputs(backend)
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
            // The result overflows T.
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

/// The derivative of every operation agrees with the f64 reference on ordinary operands.
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
    // Includes 0, since the slopes at kinks are specified (0 for abs, a half for log_sigmoid).
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
        // The error may be a few roundoffs of the slope, or of 1 if the slope is small.
        // `slopes_in_the_tails` tests the relative accuracy of small slopes.
        let allowed = 16.0 * T::ROUNDOFF * (1.0 + want.abs());
        let error = (got - want).abs();
        if error.is_nan() || error > allowed {
            let (row, gate, unit) = (i / (2 * width), i / width % 2, i % width);
            let operands = operands[row * width + unit];
            wrong.push(format!(
                "  gradient of gate {gate} at {operands:?}: got {got:e}, wanted {want:e}"
            ));
        }
    }
    report(what, wrong)
}
