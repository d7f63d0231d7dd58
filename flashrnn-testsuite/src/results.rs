//! Results by tensor name, their errors, and the tolerances.

use flashrnn_core::reference;
use flashrnn_core::{Cell, Dtype, Options, Result};

use crate::case::Case;
use crate::random::Random;

/// Holds tensors by name, in f64.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    tensors: Vec<(&'static str, Vec<f64>)>,
}

impl Results {
    /// Adds a tensor.
    pub fn push(&mut self, name: &'static str, values: Vec<f64>) {
        self.tensors.push((name, values));
    }

    /// Adds all tensors of `other`.
    pub fn extend(&mut self, other: Self) {
        self.tensors.extend(other.tensors);
    }

    /// Returns the tensor called `name`, or an empty one.
    pub fn get(&self, name: &str) -> &[f64] {
        self.iter().find(|(n, _)| *n == name).map_or(&[], |(_, values)| values)
    }

    /// Returns the tensor called `name` for writing, or an empty one.
    pub fn get_mut(&mut self, name: &str) -> &mut [f64] {
        self.tensors.iter_mut().find(|(n, _)| *n == name).map_or(&mut [], |(_, values)| values)
    }

    /// Returns only the tensors in `names`.
    pub fn only(&self, names: &[&str]) -> Self {
        let keep = |(name, _): &&(&str, Vec<f64>)| names.contains(name);
        Self { tensors: self.tensors.iter().filter(keep).cloned().collect() }
    }

    /// Returns tensors of the same names and sizes, filled with 0.
    pub fn zeroed(&self) -> Self {
        Self {
            tensors: self
                .tensors
                .iter()
                .map(|(name, values)| (*name, vec![0.0; values.len()]))
                .collect(),
        }
    }

    /// Iterates over the tensors in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[f64])> {
        self.tensors.iter().map(|(name, values)| (*name, values.as_slice()))
    }

    /// Runs the f64 reference on `case`. Returns the same tensors as [`run`](crate::run()).
    ///
    /// # Errors
    /// The same as [`reference::forward`].
    pub fn reference<C: Cell>(cell: &C, case: &Case) -> Result<Self> {
        let out = reference::forward(cell, &case.problem, &case.inputs)?;
        let grads = reference::backward(cell, &case.problem, &case.inputs, &out, &case.d)?;
        let h = out.states[..case.problem.shapes::<C>()?.h().iter().product()].to_vec();
        let mut results = Self::default();
        results.push("h", h);
        results.push("states", out.states);
        results.push("last", out.last);
        results.push("d_wx", grads.d_wx);
        results.push("d_r", grads.d_r);
        results.push("d_b", grads.d_b);
        results.push("d_s0", grads.d_s0);
        Ok(results)
    }
}

/// Returns the relative error of each tensor of `want`: the norm of the difference over the norm of
/// `want`.
///
/// The error is infinite if `got` contains NaN, lacks the tensor or has another element count. If
/// `want` is all zeros, the error is 0 if `got` is too, and otherwise infinite, since such zeros
/// follow from the options and must be exact.
pub fn errors(got: &Results, want: &Results) -> Vec<(&'static str, f64)> {
    want.iter().map(|(name, want)| (name, error(got.get(name), want))).collect()
}

/// Returns the relative error of one tensor, as defined by [`errors`].
pub fn error(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() || got.iter().any(|v| v.is_nan()) {
        return f64::INFINITY;
    }
    let difference = norm(got.iter().zip(want).map(|(got, want)| got - want));
    if difference == 0.0 { 0.0 } else { difference / norm(want.iter().copied()) }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// Returns the relative error (norm over norm, per tensor) that a backend may have with elements of
/// `dtype`, on well-conditioned input that is exactly representable in it. [`compare`] adds an
/// allowance for ill-conditioned input.
pub fn tolerance(dtype: Dtype) -> f64 {
    match dtype {
        // 84 roundoffs. The error of sums over D and T grows like the square root of their length,
        // exp and tanh cost a few roundoffs, and every time step inherits the error of the previous
        // one.
        Dtype::F32 => 5e-6,
        // The same with more slack, because the order of summation is free and backends approximate
        // functions by polynomials in f64 too.
        Dtype::F64 => 1e-12,
        // Four roundoffs. h is rounded before it is multiplied by R, and states and gates when they
        // are saved. The recurrence propagates the three roundings of each step, whose signs are
        // random.
        Dtype::F16 => 2e-3,
        Dtype::Bf16 => 1.5e-2,
    }
}

/// Measures the error of each tensor of `got`, with elements of `dtype`, against the f64 reference.
///
/// # Errors
/// The same as [`reference::forward`].
pub fn measure<C: Cell>(
    cell: &C,
    case: &Case,
    dtype: Dtype,
    got: &Results,
) -> Result<Vec<Measured>> {
    compare(cell, case, dtype, got, &Results::reference(cell, case)?)
}

/// Measures the error of each tensor of `got` against `want`, where both are results of `case`.
///
/// The allowed error is [`tolerance`]. If a tensor exceeds it, the allowance grows by the change of
/// the reference when its inputs change by one roundoff of `dtype` and its forward clip by four,
/// since no backend can do better near a discontinuity (the edge of a clip) or where large terms
/// cancel. It also grows by the loss to underflow.
///
/// # Errors
/// The same as [`reference::forward`].
pub fn compare<C: Cell>(
    cell: &C,
    case: &Case,
    dtype: Dtype,
    got: &Results,
    want: &Results,
) -> Result<Vec<Measured>> {
    let mut measured: Vec<Measured> = errors(got, want)
        .into_iter()
        .map(|(tensor, error)| Measured { tensor, error, allowed: tolerance(dtype) })
        .collect();
    if measured.iter().any(|m| m.error > m.allowed && m.error.is_finite()) {
        let roundoff = roundoff(dtype);
        let exact = Results::reference(cell, case)?;
        for clip in [1.0 - 4.0 * roundoff, 1.0 + 4.0 * roundoff] {
            let near = Results::reference(cell, &perturbed(case, roundoff, clip))?;
            for m in &mut measured {
                m.allowed += error(near.get(m.tensor), exact.get(m.tensor));
            }
        }
        for m in measured.iter_mut().filter(|m| m.error > 0.0) {
            let want = exact.get(m.tensor);
            m.allowed += underflow(dtype) * (want.len() as f64).sqrt() / norm(want.iter().copied());
        }
    }
    Ok(measured)
}

/// Returns the absolute error that underflow in `dtype` may cause in an element of a result.
///
/// The gradient of the gates is carried from step to step in the tensors' type, because a matrix
/// product reads it. In f16, a gradient that vanishes over many steps ends up among the subnormal
/// numbers, which are 6e-8 apart, and is rounded to one of them in each step. The errors of earlier
/// steps vanish likewise, so twice half of that spacing bounds their sum.
fn underflow(dtype: Dtype) -> f64 {
    let spacing: i32 = match dtype {
        Dtype::F16 => -24,
        Dtype::Bf16 => -133,
        Dtype::F32 => -149,
        Dtype::F64 => -1074,
    };
    2.0 * 0.5 * 2.0_f64.powi(spacing)
}

/// The error of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The tensor's name.
    pub tensor: &'static str,
    /// The relative error, norm over norm.
    pub error: f64,
    /// The largest accepted error.
    pub allowed: f64,
}

impl Measured {
    /// Returns whether the error is accepted.
    pub fn passes(&self) -> bool {
        self.error <= self.allowed
    }
}

fn roundoff(dtype: Dtype) -> f64 {
    use flashrnn_core::{Element, bf16, f16};
    match dtype {
        Dtype::F16 => f16::ROUNDOFF,
        Dtype::Bf16 => bf16::ROUNDOFF,
        Dtype::F32 => f32::ROUNDOFF,
        Dtype::F64 => f64::ROUNDOFF,
    }
}

/// Returns `case` with every number except s0 changed by `roundoff` up or down at random, and the
/// forward clip multiplied by `clip`.
fn perturbed(case: &Case, roundoff: f64, clip: f64) -> Case {
    let mut random = Random::new(clip.to_bits());
    let mut nudge = |values: &mut Vec<f64>| {
        for v in values {
            // Relative to at most 1, because an input of -90 represents a closed gate, not an
            // imprecise one.
            let nudge = roundoff * v.abs().min(1.0);
            *v += if random.chance(0.5) { nudge } else { -nudge };
        }
    };
    let mut near = case.clone();
    nudge(&mut near.inputs.wx);
    nudge(&mut near.inputs.r);
    nudge(&mut near.inputs.b);
    near.d.d_states.iter_mut().for_each(&mut nudge);
    near.d.d_last.iter_mut().for_each(&mut nudge);
    near.problem = case.problem.with(Options {
        forward_clip: case.problem.options.forward_clip.map(|v| v * clip),
        ..case.problem.options
    });
    near
}
