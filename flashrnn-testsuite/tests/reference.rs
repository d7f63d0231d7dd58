//! The f64 reference against finite differences, and hand-written backward passes against derived
//! ones: what everything else is measured by. No backend takes part.

use flashrnn_core::reference::{self, Gradients, Inputs, OutputGradients};
use flashrnn_core::{
    Array, Cell, Elman, Gru, Layout, Lstm, Options, Problem, Result, Slstm, derived_backward,
};
use flashrnn_testsuite::cells::{Autonomous, Leaky, Twin};
use flashrnn_testsuite::random::Random;
use flashrnn_testsuite::results::error;
use flashrnn_testsuite::{Case, Tensors};

/// The loss that `case.d` is the gradient of: `Σ states·d_states + Σ last·d_last`.
fn loss<C: Cell>(cell: &C, case: &Case, x: &Inputs) -> Result<f64> {
    let out = reference::forward(cell, &case.problem, x)?;
    let against = |values: &[f64], d: &Option<Vec<f64>>| -> f64 {
        d.iter().flatten().zip(values).map(|(d, v)| d * v).sum()
    };
    Ok(against(&out.states, &case.d.d_states) + against(&out.last, &case.d.d_last))
}

/// The slope of the loss along every element that `tensor` gives, by central differences of fourth
/// order, whose error is about 1e-11 here (h⁴ and 1e-16/h, with h = 1e-3).
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

/// Random cases over every option whose gradient is the derivative of the loss: all but the clip
/// and the cut of the recurrent gradient, which change the gradient alone. The forward clip is
/// tested apart, away from its edge.
///
/// `adapt` changes a case, and says which part of `d_s0` is compared.
fn against_finite_differences<C: Cell>(
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
            Case::random::<C, f64, f64>(cell, &problem, tensors, seed).expect("a good problem");
        let compared = adapt(&mut case);
        let got = gradients(cell, &case).expect("a good case");
        let check = |name: &str, got: &[f64], want: &[f64]| {
            // The differences themselves are good to 1e-9; where the gradient is 0 they leave noise
            // of 1e-11.
            let noise = want.iter().all(|v| v.abs() < 1e-9) && got.iter().all(|v| v.abs() < 1e-9);
            let error = error(got, want);
            assert!(noise || error < 1e-8, "{} {name}: {error:e} in {case:?}", C::NAME);
        };
        check("d_wx", &got.d_wx, &slopes(cell, &case, |x| &mut x.wx).expect("a good case"));
        check("d_r", &got.d_r, &slopes(cell, &case, |x| &mut x.r).expect("a good case"));
        check("d_b", &got.d_b, &slopes(cell, &case, |x| &mut x.b).expect("a good case"));
        let d_s0 = slopes(cell, &case, |x| x.s0.get_or_insert_default()).expect("a good case");
        check("d_s0", &got.d_s0[compared.clone()], &d_s0[compared]);
    }
}

/// All of `d_s0`.
fn everything(case: &mut Case) -> std::ops::Range<usize> {
    0..case.inputs.s0.as_ref().map_or(0, Vec::len)
}

#[test]
fn elman_against_finite_differences() {
    against_finite_differences(&Elman, everything);
}

#[test]
fn gru_against_finite_differences() {
    against_finite_differences(&Gru, everything);
}

#[test]
fn lstm_against_finite_differences() {
    against_finite_differences(&Lstm, everything);
}

#[test]
fn custom_cells_against_finite_differences() {
    against_finite_differences(&Leaky { a: 0.3 }, everything);
    against_finite_differences(&Twin, everything);
}

/// A loss on h alone, an initial state that an earlier sequence left in every row (n = 0 is a
/// discontinuity), and m not varied: then the other gradients are exact although m is held
/// constant.
#[test]
fn slstm_against_finite_differences() {
    against_finite_differences(&Slstm, |case| {
        let options = Options { reverse: false, ..case.problem.options };
        let problem = Problem { time: 3, options, ..case.problem.clone() };
        let tensors = Tensors::default();
        let earlier =
            Case::random::<Slstm, f64, f64>(&Slstm, &problem, tensors, 77).expect("a good problem");
        let last = reference::forward(&Slstm, &problem, &earlier.inputs).expect("a good case").last;
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

/// The forward clip, on cases where no h' comes within 1e-2 of its edge: there the loss is smooth.
#[test]
fn forward_clip_against_finite_differences() {
    let mut checked = 0;
    for seed in 0..300 {
        let v = 0.3;
        let problem =
            Problem::new(2, 3, 1, 2).with(Options { reverse: seed % 2 == 0, ..Options::default() });
        let clipped = problem.with(Options { forward_clip: Some(v), ..problem.options });
        let case = Case::random::<Lstm, f64, f64>(&Lstm, &clipped, Tensors::ALL, seed)
            .expect("a good problem");
        // Whether any h' is near the edge shows when the edge moves: masks, and so d_wx, change by
        // a jump.
        let moved = |v| Case {
            problem: clipped.with(Options { forward_clip: Some(v), ..clipped.options }),
            ..case.clone()
        };
        let d_wx = |case: &Case| gradients(&Lstm, case).expect("a good case").d_wx;
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
        let want = slopes(&Lstm, &case, |x| &mut x.wx).expect("a good case");
        assert!(error(&here, &want) < 1e-8, "seed {seed}: {:e}", error(&here, &want));
        checked += 1;
    }
    assert!(checked >= 10, "only {checked} cases were away from the edge");
}

/// At the edge itself the gradient passes, and beyond it is 0.
#[test]
fn forward_clip_at_its_edge() {
    // h' = tanh g, with a clip at h' exactly, a little below and a little above.
    let g: f64 = 0.5;
    let h = g.tanh();
    let d_wx = |clip: f64| {
        let problem = Problem::new(1, 1, 1, 1)
            .with(Options { forward_clip: Some(clip), ..Options::default() });
        let inputs = Inputs { wx: vec![g], r: vec![0.0], b: vec![0.0], ..Inputs::default() };
        let d = OutputGradients { d_states: Some(vec![1.0]), d_last: None };
        gradients(&Elman, &Case { problem, inputs, d }).expect("a good case").d_wx[0]
    };
    // The cell has the slope from exp(-2|g|), not from h: the two round in their own ways.
    let near = |got: f64| assert!((got - (1.0 - h * h)).abs() <= 4.0 * f64::EPSILON, "{got}");
    near(d_wx(h));
    near(d_wx(h.next_up()));
    assert_eq!(d_wx(h.next_down()), 0.0);
}

/// The recurrent gradient clipped and cut, against the chain rule written out for an Elman unit of
/// two steps.
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
        gradients(&Elman, &Case { problem, inputs, d }).expect("a good case")
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
        // Ten roundoffs: the slopes here are 1 - h², the cell's come from exp(-2|g|).
        let near = |got: f64, want: f64| {
            assert!(
                (got - want).abs() < 1.2e-15 * (1.0 + want.abs()),
                "{cut} {clip:?}: {got}, wanted {want}"
            );
        };
        near(got.d_wx[1], d_g1);
        near(got.d_wx[0], d_g0);
        near(got.d_s0[0], d_s0);
        // d_r is computed whatever is cut; before the first step h is 0.
        near(got.d_r[0], d_g1 * h[0]);
        near(got.d_b[0], d_g0 + d_g1);
    }
}

/// A state held constant has gradient 0, and gradients given for it are ignored.
#[test]
fn constant_states() {
    fn check<C: Cell>(cell: &C) {
        let problem = Problem::new(2, 4, 2, 3);
        let case =
            Case::random::<C, f64, f64>(cell, &problem, Tensors::ALL, 5).expect("a good problem");
        let got = gradients(cell, &case).expect("a good case");
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
        assert_eq!(gradients(cell, &other).expect("a good case"), got, "{}", C::NAME);
    }
    check(&Slstm);
    check(&Autonomous);
}

/// The hand-written backward pass of each built-in cell is the derived one, in f64 and in f32.
#[test]
fn written_backward_is_the_derived_one() {
    fn check<C: Cell>(cell: &C) {
        let mut random = Random::new(11);
        for trial in 0..20_000 {
            let large = trial % 4 == 0;
            let scale = if large { 20.0 } else { 1.5 };
            let mut gates = C::Gates::<f64>::splat(0.0);
            gates.as_mut().iter_mut().for_each(|g| *g = scale * random.normal());
            let mut before = C::State::<f64>::splat(0.0);
            if trial % 3 != 0 {
                // A state that earlier steps left.
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
                    // Terms of the size of d, at most 1/n of it, cancel: what remains is off by
                    // roundoffs of them.
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
