//! Compares the f64 reference, which everything else is tested against, with finite differences,
//! and overridden backward functions with derived ones. No backend is involved.

use flashrnn_core::reference::{self, Gradients, Inputs, OutputGradients};
use flashrnn_core::{
    Array, Cell, Elman, Gru, Layout, Lstm, Options, Problem, Result, Slstm, derived_backward,
};
use flashrnn_testsuite::cells::{Autonomous, Leaky, ManyGates, Twin};
use flashrnn_testsuite::random::Random;
use flashrnn_testsuite::results::error;
use flashrnn_testsuite::{Case, Tensors};

/// Returns the loss whose gradient is `case.d`: `Σ states·d_states + Σ last·d_last`.
fn loss<C: Cell>(cell: &C, case: &Case, x: &Inputs) -> Result<f64> {
    let out = reference::forward(cell, &case.problem, x)?;
    let dot = |values: &[f64], d: &Option<Vec<f64>>| -> f64 {
        d.iter().flatten().zip(values).map(|(d, v)| d * v).sum()
    };
    Ok(dot(&out.states, &case.d.d_states) + dot(&out.last, &case.d.d_last))
}

/// Returns the derivative of the loss with respect to every element of the tensor selected by
/// `tensor`. Fourth-order central differences with h = 1e-3 have an error of about 1e-11 here (h⁴
/// and 1e-16/h).
fn slopes<C: Cell>(
    cell: &C,
    case: &Case,
    tensor: fn(&mut Inputs) -> &mut Vec<f64>,
) -> Result<Vec<f64>> {
    let h = 1e-3;
    let len = tensor(&mut case.inputs.clone()).len();
    let at = |i: usize, offset: f64| {
        let mut x = case.inputs.clone();
        tensor(&mut x)[i] += offset;
        loss(cell, case, &x)
    };
    (0..len)
        .map(|i| {
            Ok((8.0 * (at(i, h)? - at(i, -h)?) - (at(i, 2.0 * h)? - at(i, -2.0 * h)?)) / (12.0 * h))
        })
        .collect()
}

fn gradients<C: Cell>(cell: &C, case: &Case) -> Result<Gradients> {
    let out = reference::forward(cell, &case.problem, &case.inputs)?;
    reference::backward(cell, &case.problem, &case.inputs, &out, &case.d)
}

/// Compares gradients with finite differences on random cases. They cover every option except the
/// clip and the cut of the recurrent gradient, with which gradients are not the derivative of the
/// loss, and the forward clip, which is tested separately away from its edge.
///
/// `adapt` changes a case and returns the part of `d_s0` to compare.
fn check_finite_differences<C: Cell>(
    cell: &C,
    adapt: impl Fn(&mut Case) -> std::ops::Range<usize>,
) {
    let mut random = Random::new(1);
    for seed in 0..24 {
        let mut flag = || random.chance(0.5);
        let problem = Problem::new(
            1 + seed as usize % 3,
            seed as usize % 7,
            1 + seed as usize % 2,
            1 + seed as usize % 4,
        )
        .with(Options {
            layout: if flag() { Layout::TimeMajor } else { Layout::BatchMajor },
            reverse: flag(),
            ..Options::default()
        });
        let tensors = Tensors {
            s0: true,
            lengths: flag(),
            resets: flag(),
            d_states: true,
            d_last: flag(),
            extreme: false,
        };
        let mut case =
            Case::random::<C, f64, f64>(cell, &problem, tensors, seed).expect("a valid problem");
        let compared = adapt(&mut case);
        let got = gradients(cell, &case).expect("a valid case");
        let check = |name: &str, got: &[f64], want: &[f64]| {
            // The differences are accurate to 1e-9. Where the gradient is 0, they have noise of
            // 1e-11.
            let noise = want.iter().all(|v| v.abs() < 1e-9) && got.iter().all(|v| v.abs() < 1e-9);
            let error = error(got, want);
            assert!(noise || error < 1e-8, "{} {name}: {error:e} in {case:?}", C::NAME);
        };
        check("d_wx", &got.d_wx, &slopes(cell, &case, |x| &mut x.wx).expect("a valid case"));
        check("d_r", &got.d_r, &slopes(cell, &case, |x| &mut x.r).expect("a valid case"));
        check("d_b", &got.d_b, &slopes(cell, &case, |x| &mut x.b).expect("a valid case"));
        let d_s0 = slopes(cell, &case, |x| x.s0.get_or_insert_default()).expect("a valid case");
        check("d_s0", &got.d_s0[compared.clone()], &d_s0[compared]);
    }
}

/// Selects all of `d_s0`.
fn everything(case: &mut Case) -> std::ops::Range<usize> {
    0..case.inputs.s0.as_ref().map_or(0, Vec::len)
}

#[test]
fn elman_against_finite_differences() {
    check_finite_differences(&Elman, everything);
}

#[test]
fn gru_against_finite_differences() {
    check_finite_differences(&Gru, everything);
}

#[test]
fn lstm_against_finite_differences() {
    check_finite_differences(&Lstm, everything);
}

#[test]
fn custom_cells_against_finite_differences() {
    check_finite_differences(&Leaky { a: 0.3 }, everything);
    check_finite_differences(&Twin, everything);
}

/// The gradients of sLSTM are exact, although m is treated as a constant, for a loss on h alone and
/// an initial state left by an earlier sequence (n = 0 is a discontinuity). The gradient of m's
/// initial state is not compared.
#[test]
fn slstm_against_finite_differences() {
    check_finite_differences(&Slstm, |case| {
        let options = Options { reverse: false, ..case.problem.options };
        let problem = Problem { time: 3, options, ..case.problem.clone() };
        let tensors = Tensors::default();
        let earlier = Case::random::<Slstm, f64, f64>(&Slstm, &problem, tensors, 77)
            .expect("a valid problem");
        let last =
            reference::forward(&Slstm, &problem, &earlier.inputs).expect("a valid case").last;
        let part = last.len() / 4;
        case.inputs.s0 = Some(last);
        if let Some(d_states) = &mut case.d.d_states {
            let h = d_states.len() / 4;
            d_states[h..].fill(0.0);
        }
        if let Some(d_last) = &mut case.d.d_last {
            d_last[part..].fill(0.0);
        }
        0..3 * part
    });
}

/// Tests the forward clip on cases in which no h' is within 1e-2 of the clip, so that the loss is
/// smooth.
#[test]
fn forward_clip_against_finite_differences() {
    let mut checked = 0;
    for seed in 0..300 {
        let v = 0.3;
        let problem =
            Problem::new(2, 3, 1, 2).with(Options { reverse: seed % 2 == 0, ..Options::default() });
        let clipped = problem.with(Options { forward_clip: Some(v), ..problem.options });
        let case = Case::random::<Lstm, f64, f64>(&Lstm, &clipped, Tensors::ALL, seed)
            .expect("a valid problem");
        // If any h' is near the clip, moving the clip changes masks and makes d_wx jump.
        let moved = |v| Case {
            problem: clipped.with(Options { forward_clip: Some(v), ..clipped.options }),
            ..case.clone()
        };
        let d_wx = |case: &Case| gradients(&Lstm, case).expect("a valid case").d_wx;
        let zeros = |d: &[f64]| d.iter().map(|&d| d == 0.0).collect::<Vec<_>>();
        let unclipped = Case {
            problem: clipped.with(Options { forward_clip: None, ..clipped.options }),
            ..case.clone()
        };
        let here = d_wx(&case);
        let far = [0.97, 0.98, 0.99, 1.01, 1.02, 1.03].iter().all(|f| {
            zeros(&d_wx(&moved(v * f))) == zeros(&here) && error(&d_wx(&moved(v * f)), &here) < 0.1
        });
        if !far || error(&d_wx(&unclipped), &here) < 1e-3 {
            continue;
        }
        let want = slopes(&Lstm, &case, |x| &mut x.wx).expect("a valid case");
        assert!(error(&here, &want) < 1e-8, "seed {seed}: {:e}", error(&here, &want));
        checked += 1;
    }
    assert!(checked >= 10, "only {checked} cases were far enough from the clip");
}

/// The gradient passes where h' equals the clip, and is 0 beyond.
#[test]
fn forward_clip_at_its_edge() {
    // h' = tanh g, with a clip exactly at h', and one ulp above and below.
    let g: f64 = 0.5;
    let h = g.tanh();
    let d_wx = |clip: f64| {
        let problem = Problem::new(1, 1, 1, 1)
            .with(Options { forward_clip: Some(clip), ..Options::default() });
        let inputs = Inputs { wx: vec![g], r: vec![0.0], b: vec![0.0], ..Inputs::default() };
        let d = OutputGradients { d_states: Some(vec![1.0]), d_last: None };
        gradients(&Elman, &Case { problem, inputs, d }).expect("a valid case").d_wx[0]
    };
    // The cell computes the slope from exp(-2|g|), not from h, and the two round differently.
    let near = |got: f64| assert!((got - (1.0 - h * h)).abs() <= 4.0 * f64::EPSILON, "{got}");
    near(d_wx(h));
    near(d_wx(h.next_up()));
    assert_eq!(d_wx(h.next_down()), 0.0);
}

/// Compares the clipped and the cut recurrent gradient with the chain rule written out for two
/// steps of an Elman unit.
#[test]
fn recurrent_gradient_clipped_and_cut() {
    let (r, x): (f64, [f64; 2]) = (1.7, [0.3, -0.4]);
    let d_h = [0.5, -2.0];
    let h0 = x[0];
    let h = [h0.tanh(), (r * h0.tanh() + x[1]).tanh()];
    let slope = |h: f64| 1.0 - h * h;
    let d_g1 = d_h[1] * slope(h[1]);
    let run = |cut, clip| {
        let problem = Problem::new(1, 2, 1, 1).with(Options {
            cut_recurrent_grad: cut,
            recurrent_grad_clip: clip,
            ..Options::default()
        });
        let inputs = Inputs { wx: x.to_vec(), r: vec![r], b: vec![0.0], ..Inputs::default() };
        let d = OutputGradients { d_states: Some(d_h.to_vec()), d_last: None };
        gradients(&Elman, &Case { problem, inputs, d }).expect("a valid case")
    };
    let through_r = r * d_g1;
    for (cut, clip, reaches) in [
        (false, None, through_r),
        (false, Some(0.25), -0.25),
        (false, Some(100.0), through_r),
        (true, None, 0.0),
        (true, Some(0.25), 0.0),
    ] {
        let got = run(cut, clip);
        let d_g0 = (d_h[0] + reaches) * slope(h[0]);
        let d_s0 = if cut { 0.0 } else { clip.map_or(r * d_g0, |v: f64| (r * d_g0).clamp(-v, v)) };
        // Allows ten roundoffs: the slopes here are 1 - h², and the cell's come from exp(-2|g|).
        let near = |got: f64, want: f64| {
            assert!(
                (got - want).abs() < 1.2e-15 * (1.0 + want.abs()),
                "{cut} {clip:?}: {got}, wanted {want}"
            );
        };
        near(got.d_wx[1], d_g1);
        near(got.d_wx[0], d_g0);
        near(got.d_s0[0], d_s0);
        // d_r is computed even if the recurrent gradient is cut. h is 0 before the first step.
        near(got.d_r[0], d_g1 * h[0]);
        near(got.d_b[0], d_g0 + d_g1);
    }
}

/// A constant state has gradient 0, and incoming gradients for it are ignored.
#[test]
fn constant_states() {
    fn check<C: Cell>(cell: &C) {
        let problem = Problem::new(2, 4, 2, 3);
        let case =
            Case::random::<C, f64, f64>(cell, &problem, Tensors::ALL, 5).expect("a valid problem");
        let got = gradients(cell, &case).expect("a valid case");
        let mut other = case.clone();
        let part = got.d_s0.len() / C::STATES.len();
        for &k in C::CONSTANT {
            assert!(got.d_s0[k * part..][..part].iter().all(|&d| d == 0.0), "{}", C::NAME);
            for d in [&mut other.d.d_states, &mut other.d.d_last] {
                let Some(d) = d else { continue };
                let part = d.len() / C::STATES.len();
                d[k * part..][..part].fill(1e3);
            }
        }
        assert_eq!(gradients(cell, &other).expect("a valid case"), got, "{}", C::NAME);
    }
    check(&Slstm);
    check(&Autonomous);
    check(&ManyGates);
}

/// The overridden `backward` of each built-in cell agrees with the derived one.
#[test]
fn overridden_backward_agrees_with_the_derived_one() {
    fn check<C: Cell>(cell: &C) {
        let mut random = Random::new(11);
        for trial in 0..20_000 {
            let large = trial % 4 == 0;
            let scale = if large { 20.0 } else { 1.5 };
            let mut gates = C::Gates::<f64>::splat(0.0);
            gates.as_mut().iter_mut().for_each(|g| *g = scale * random.normal());
            let mut before = C::State::<f64>::splat(0.0);
            if trial % 3 != 0 {
                // Uses a state left by earlier steps.
                for _ in 0..2 {
                    let mut earlier = gates;
                    earlier.as_mut().iter_mut().for_each(|g| *g = random.normal());
                    before = cell.forward(before, earlier);
                }
            }
            let mut d = C::State::<f64>::splat(0.0);
            d.as_mut().iter_mut().for_each(|d| *d = random.normal());
            let (written, derived) =
                (cell.backward(before, gates, d), derived_backward(cell, before, gates, d));
            for (got, want) in
                [(written.0.as_ref(), derived.0.as_ref()), (written.1.as_ref(), derived.1.as_ref())]
            {
                for (k, (got, want)) in got.iter().zip(want).enumerate() {
                    // Terms as large as d / n may cancel, which leaves an error of some roundoffs
                    // of those terms.
                    let near = (got - want).abs() <= 1e-13 * (1.0 + want.abs());
                    let (before, gates) = (before.as_ref(), gates.as_ref());
                    assert!(
                        near,
                        "{} {k}: {got:e}, derived {want:e} at {before:?} {gates:?}",
                        C::NAME
                    );
                }
            }
        }
    }
    check(&Elman);
    check(&Gru);
    check(&Lstm);
    check(&Slstm);
}
