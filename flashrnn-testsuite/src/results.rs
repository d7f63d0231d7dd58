//! Results by tensor name, and how far two of them are apart.

use flashrnn_core::reference;
use flashrnn_core::{Cell, Dtype, Options, Result};

use crate::case::Case;
use crate::random::Random;

/// Tensors by name, in f64.
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

    /// The tensor of this name; empty if there is none.
    pub fn get(&self, name: &str) -> &[f64] {
        self.iter().find(|(n, _)| *n == name).map_or(&[], |(_, values)| values)
    }

    /// The tensor of this name, for writing; empty if there is none.
    pub fn get_mut(&mut self, name: &str) -> &mut [f64] {
        self.tensors.iter_mut().find(|(n, _)| *n == name).map_or(&mut [], |(_, values)| values)
    }

    /// The tensors of these names alone.
    pub fn only(&self, names: &[&str]) -> Self {
        let keep = |(name, _): &&(&str, Vec<f64>)| names.contains(name);
        Self { tensors: self.tensors.iter().filter(keep).cloned().collect() }
    }

    /// The same tensors, all 0.
    pub fn zeroed(&self) -> Self {
        Self {
            tensors: self
                .tensors
                .iter()
                .map(|(name, values)| (*name, vec![0.0; values.len()]))
                .collect(),
        }
    }

    /// The tensors in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[f64])> {
        self.tensors.iter().map(|(name, values)| (*name, values.as_slice()))
    }

    /// What the f64 reference gives for `case`: the tensors of [`run`](crate::run()).
    ///
    /// # Errors
    /// As [`reference::forward`].
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

/// The relative error of each tensor of `want`: the norm of the difference over the norm of `want`.
///
/// A NaN in `got`, a missing tensor or a wrong element count is an infinite error. Where all of
/// `want` is 0, the error is 0 if all of `got` is 0 too, else infinite: such zeros follow from the
/// options and are exact.
pub fn errors(got: &Results, want: &Results) -> Vec<(&'static str, f64)> {
    want.iter().map(|(name, want)| (name, error(got.get(name), want))).collect()
}

/// The relative error of one tensor, as [`errors`] defines it.
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

/// The relative error (norm over norm, each tensor) that a backend may have with elements of this
/// type, on well-conditioned input that is exact in it. [`compare`] adds what ill-conditioned input
/// takes.
pub fn tolerance(dtype: Dtype) -> f64 {
    match dtype {
        // 84 roundoffs. Sums over D and T grow like the square root of their length, exp and tanh
        // cost a few roundoffs, and each step of time passes on the error of the one before.
        Dtype::F32 => 5e-6,
        // The same, with room: the order of summation is free, and polynomials are made for f64
        // too.
        Dtype::F64 => 1e-12,
        // Four roundoffs. h is rounded when R reads it, states and gates when they are saved: three
        // roundings in each step, of random sign, that the recurrence hands on.
        Dtype::F16 => 2e-3,
        Dtype::Bf16 => 1.5e-2,
    }
}

/// The error of each tensor against the f64 reference, and what it may be, for results with
/// elements of `dtype`.
///
/// # Errors
/// As [`reference::forward`].
pub fn measure<C: Cell>(
    cell: &C,
    case: &Case,
    dtype: Dtype,
    got: &Results,
) -> Result<Vec<Measured>> {
    compare(cell, case, dtype, got, &Results::reference(cell, case)?)
}

/// The error of each tensor of `got` against `want`, two results for `case`, and what it may be.
///
/// What it may be is [`tolerance`], and where the error is above that, also the change of the
/// reference when its own inputs change by one roundoff of `dtype`, and the forward clip by four:
/// near a discontinuity (the edge of a clip), and where large terms cancel, no better answer can be
/// had. And it may be what `underflow` loses.
///
/// # Errors
/// As [`reference::forward`].
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

/// What an element of a result may be off for values near 0 that `dtype` cannot tell apart.
///
/// The gradient of the gates goes from step to step in the tensors' type, in which a product wants
/// it; in f16 what vanishes over many steps comes to lie among the subnormal numbers, 6e-8 apart,
/// and is rounded to one of them in each step. The contributions of the steps before fade in their
/// turn: two half-distances cover them.
fn underflow(dtype: Dtype) -> f64 {
    let distance: i32 = match dtype {
        Dtype::F16 => -24,
        Dtype::Bf16 => -133,
        Dtype::F32 => -149,
        Dtype::F64 => -1074,
    };
    2.0 * 0.5 * 2.0_f64.powi(distance)
}

/// The error of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The tensor's name.
    pub tensor: &'static str,
    /// The relative error, norm over norm.
    pub error: f64,
    /// The largest error that is all right.
    pub allowed: f64,
}

impl Measured {
    /// Whether the error is all right.
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

/// `case` with every input off by `roundoff` up or down at random, and the forward clip by the
/// factor `clip`.
fn perturbed(case: &Case, roundoff: f64, clip: f64) -> Case {
    let mut random = Random::new(clip.to_bits());
    let mut nudge = |values: &mut Vec<f64>| {
        for v in values {
            // Of 1 at most: an input of -90 is exact, and stands for a gate shut tight, not for one
            // of little precision.
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
