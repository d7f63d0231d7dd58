//! Extreme values: infinite gates, slopes in the tails, and states outside the range of 16-bit
//! elements.

use flashrnn_core::reference::{Inputs, OutputGradients};
use flashrnn_core::{
    Backend, Cell, Dtype, Element, Gate, Options, Problem, Real, Result, Save, bf16, f16,
};

use super::probe::{Op, Probe, probe_case, report, smallest_normal, special, sweep};
use crate::case::{Case, range, rounded};
use crate::random::Random;
use crate::results::{Results, errors, tolerance};
use crate::run::run;
use crate::suite::{Draw, Failures, Suite, close, ok};

/// For infinite pre-activations, backends agree with the f64 reference, which yields the limits of
/// the cells' formulas and finite gradients. So do single steps. Gates without external input
/// become infinite through their bias.
pub fn infinite_gates<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 8, work: 20_000 },
        |setup| setup.tensors.extreme = true,
        |subject, case| {
            let shapes = ok(subject.shapes(&case.problem))?;
            let mut case = case.clone();
            // Either inputs or biases are infinite, never both: there is no limit where opposite
            // infinities meet, nor where an infinity is multiplied by a σ that f32 rounds to 0.
            let (input_scale, bias_scale) = if case.inputs.b.first().is_some_and(|b| *b > 0.0) {
                (f64::INFINITY, 1.0)
            } else {
                (3.0, f64::INFINITY)
            };
            let extreme = case.inputs.wx.iter_mut().filter(|x| x.abs() == 90.0);
            extreme.for_each(|x| *x = input_scale * x.signum());
            let inner_biases = case.inputs.b.iter_mut().take(shapes.inner() * shapes.units());
            inner_biases.filter(|b| b.abs() > 1.0).for_each(|b| *b *= bias_scale);

            let want = ok(subject.reference(&case))?;
            if let Some((name, _)) =
                want.iter().find(|(_, values)| values.iter().any(|v| !v.is_finite()))
            {
                return Err(format!("{name} of the reference is not finite"));
            }
            let got = ok(subject.run(&suite.backend, &case))?;
            close(subject, &case, &got, &want)?;
            let x = &case.inputs;
            if case.problem.options.reverse || x.lengths.is_some() || x.resets.is_some() {
                return Ok(());
            }
            let streamed = ok(subject.stream(&suite.backend, &case))?;
            close(subject, &case, &streamed, &got.only(&["h", "last"]))
        },
    )
}

/// The slopes of tanh, sigmoid and functions built on them keep their relative accuracy in both
/// tails, down to a few times the smallest normal number.
pub fn slopes_in_the_tails<B: Backend>(suite: &Suite<B>) -> Failures {
    let dtypes = suite.backend.info().dtypes;
    let mut failures = Failures::new();
    for op in [Op::Tanh, Op::Sigmoid, Op::LogSigmoid, Op::SoftplusNegAbs] {
        if dtypes.contains(&Dtype::F32) {
            failures.extend(slope_failures::<B, f32>(&suite.backend, op).err());
        }
        if dtypes.contains(&Dtype::F64) {
            failures.extend(slope_failures::<B, f64>(&suite.backend, op).err());
        }
    }
    failures
}

fn slope_failures<B: Backend, T: Element>(backend: &B, op: Op) -> std::result::Result<(), String> {
    let probe = Probe { op, negate: [false, false] };
    let smallest = smallest_normal(T::DTYPE);
    // Leaves out kinks, and numbers that devices may flush.
    let operands =
        sweep::<T>().into_iter().filter(|[u, _]| !special(*u) && u.abs() >= smallest).collect();
    let (case, operands) = probe_case(operands);
    let what = format!("slope of {op:?} in {}", T::DTYPE);
    let both = || -> Result<_> {
        Ok((run::<B, Probe, T, T>(backend, &probe, &case)?, Results::reference(&probe, &case)?))
    };
    let (got, want) = both().map_err(|error| format!("{what}: {error}"))?;
    let mut wrong = Vec::new();
    let width = case.problem.head_dim;
    let in_first_gate = |i: &usize| (i / width).is_multiple_of(2);
    for i in (0..want.get("d_wx").len()).filter(in_first_gate) {
        let (got, want) = (got.get("d_wx")[i], want.get("d_wx")[i]);
        // Near the smallest normal number slopes may be 0: 1 / (1 + e^-x) where e^-x overflows, and
        // 4 e where a device flushes e.
        let error = (got - want).abs();
        if error.is_nan() || error > 32.0 * T::ROUNDOFF * want.abs() && error > 4.0 * smallest {
            let operand = operands[i / (2 * width) * width + i % width][0];
            wrong.push(format!("  at {operand:e}: got {got:e}, wanted {want:e}"));
        }
    }
    report(what, wrong)
}

/// A cell whose sum leaves the range of 16-bit elements: `c' = c + step tanh g`,
/// `h' = tanh(o) (c' + a) scale`. Two gates take only external input, after one that takes both.
#[derive(Clone, Copy, Debug)]
struct Tally {
    step: f64,
    scale: f64,
}

impl Cell for Tally {
    const NAME: &'static str = "tally";
    const STATES: &'static [&'static str] = &["h", "c"];
    const GATES: &'static [Gate] = &[Gate::both("g"), Gate::external("a"), Gate::external("o")];
    type State<R: Real> = [R; 2];
    type Gates<R: Real> = [R; 3];

    #[inline(always)]
    fn forward<R: Real>(&self, [_, c]: [R; 2], [g, a, o]: [R; 3]) -> [R; 2] {
        let c = c + R::lit(self.step) * g.tanh();
        [o.tanh() * ((c + a) * R::lit(self.scale)), c]
    }
}

/// A case in which a value leaves the range of 16-bit elements.
#[derive(Clone, Copy, Debug)]
struct Overflow {
    cell: Tally,
    /// The initial c. Two steps out of four are `step` above it.
    c0: f64,
    /// The bias of gate a.
    a: f64,
    /// The magnitude of R's elements.
    r: f64,
    /// The magnitude of the gradient of h.
    d: f64,
}

/// A state, h or gate beyond the range of 16-bit elements is stored as the largest finite number.
/// The forward pass continues from the true state, `R` multiplies the stored h, and the backward
/// pass returns the finite gradients of the stored values.
pub fn states_saturate<B: Backend>(suite: &Suite<B>) -> Failures {
    let backend = &suite.backend;
    let c = Overflow { cell: Tally { step: 2e4, scale: 1e-5 }, c0: 6e4, a: 0.0, r: 1e-2, d: 64.0 };
    let gate = Overflow { a: 1e5, ..c };
    let h = Overflow { cell: Tally { step: 2e4, scale: 1.0 }, r: 2e-6, d: 1e-3, ..c };
    // c alternates between bf16's largest number and an f32 between that and 2^128. No other value
    // is near the smallest normal number.
    let huge = Tally { step: 1e36, scale: 1e-34 };
    let huge = Overflow { cell: huge, c0: <bf16 as Element>::MAX, a: 0.0, r: 1e-7, d: 64.0 };
    let dtypes = backend.info().dtypes;
    let mut failures = Failures::new();
    for (head_dim, save) in [(5, Save::Gates), (32, Save::Gates), (32, Save::Recompute)] {
        let options = Options { save, ..Options::default() };
        let problem = Problem { options, ..Problem::new(2, 7, 1, head_dim) };
        if dtypes.contains(&Dtype::F16) {
            failures.extend(saturation::<B, f16, f16>(backend, c, &problem).err());
            failures.extend(saturation::<B, f16, f32>(backend, c, &problem).err());
            failures.extend(saturation::<B, f16, f32>(backend, gate, &problem).err());
            failures.extend(saturation::<B, f16, f32>(backend, h, &problem).err());
        }
        if dtypes.contains(&Dtype::Bf16) {
            failures.extend(saturation::<B, bf16, bf16>(backend, huge, &problem).err());
        }
    }
    failures
}

fn saturation<B: Backend, T: Element, W: Element>(
    backend: &B,
    overflow: Overflow,
    problem: &Problem,
) -> std::result::Result<(), String> {
    let what = format!("{overflow:?} with T = {}, W = {}, {problem:?}", T::DTYPE, W::DTYPE);
    let both = || -> Result<_> {
        let case = overflow.case::<T>(problem)?;
        Ok((
            run::<B, Tally, T, W>(backend, &overflow.cell, &case)?,
            Results::reference(&overflow.cell, &case)?,
        ))
    };
    let (got, want) = both().map_err(|error| format!("{what}: {error}"))?;
    if !want.get("states").iter().any(|v| v.abs() == T::MAX) {
        return Err(format!("{what}: no state leaves the range"));
    }
    // A recomputed gate may keep its true value, so any finite result is accepted. (The error of an
    // infinite result is infinite.)
    let exact_gate = overflow.a != 0.0 && problem.options.save == Save::Recompute;
    let allowed = if exact_gate { f64::MAX } else { tolerance(T::DTYPE) };
    let wrong = errors(&got, &want).into_iter().filter(|(_, error)| *error > allowed);
    report(
        what,
        wrong.map(|(name, error)| format!("  {name}: relative error {error:.3e}")).collect(),
    )
}

impl Overflow {
    /// Makes the case. Its inputs are exact in `T`, and therefore in every type of weights too.
    fn case<T: Element>(&self, problem: &Problem) -> Result<Case> {
        let shapes = problem.shapes::<Tally>()?;
        let units = shapes.units();
        let mut random = Random::new(11);
        let size = |shape: &[usize]| shape.iter().product::<usize>();
        // wx: [B, T, Gx, N, D]
        let mut wx = rounded::<T>(random.normals(size(&shapes.wx()), 1.0));
        for (token, wx) in wx.chunks_mut(shapes.external * units).enumerate() {
            wx[..units].fill([3.0, 0.0, -3.0, 0.0][token % shapes.time % 4]);
            wx[units..2 * units].fill(0.0);
        }
        let r = rounded::<T>(random.normals(size(&shapes.r()), self.r));
        let mut b = vec![0.0; size(&shapes.b())];
        b[units..2 * units].fill(self.a);
        let mut s0 = vec![0.0; size(&shapes.state())];
        s0[shapes.batch * units..].fill(self.c0);
        let mut d_states = rounded::<T>(random.normals(size(&shapes.states()), self.d));
        d_states[size(&shapes.h())..].fill(0.0);
        let inputs = Inputs { wx, r, b, s0: Some(s0), range: range::<T>(), ..Inputs::default() };
        let d = OutputGradients { d_states: Some(d_states), d_last: None };
        Ok(Case { problem: problem.clone(), inputs, d })
    }
}
