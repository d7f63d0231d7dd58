//! Calls are deterministic, independent of each other, and touch only what they should.

use flashrnn_core::Backend;

use crate::case::{Case, rounded};
use crate::map::lengths;
use crate::properties::options::{LARGE, enlarge};
use crate::random::Random;
use crate::results::Results;
use crate::run::CallOptions;
use crate::subject::Subject;
use crate::suite::{Draw, Failures, Suite, close, ok, same_bits};

/// Repeating a call reproduces its bits.
pub fn same_bits_twice<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 4, work: 200_000 },
        |_| {},
        |subject, case| {
            let want = ok(subject.run(&suite.backend, case))?;
            same_bits(&ok(subject.run(&suite.backend, case))?, &want)
        },
    )
}

/// Every instance in `same_bits_as`, such as one with another number of threads, produces the same
/// bits.
pub fn same_bits_on_any_threads<B: Backend>(suite: &Suite<B>) -> Failures {
    let check = |subject: &dyn Subject<B>, case: &Case| {
        let want = ok(subject.run(&suite.backend, case))?;
        for (i, backend) in suite.same_bits_as.iter().enumerate() {
            same_bits(&ok(subject.run(backend, case))?, &want)
                .map_err(|error| format!("instance {i} of same_bits_as: {error}"))?;
        }
        Ok(())
    };
    let mut failures = suite.each(Draw { cases: 4, work: 200_000 }, |_| {}, check);
    failures.extend(suite.each(LARGE, enlarge, check));
    failures
}

/// Makes `count` cases with the problem and tensors of `case` and different values.
fn siblings<B: Backend>(
    subject: &dyn Subject<B>,
    case: &Case,
    count: u64,
) -> Result<Vec<Case>, String> {
    let tensors = crate::Tensors {
        s0: case.inputs.s0.is_some(),
        lengths: case.inputs.lengths.is_some(),
        resets: case.inputs.resets.is_some(),
        d_states: case.d.d_states.is_some(),
        d_last: case.d.d_last.is_some(),
        extreme: false,
    };
    let mut cases = vec![case.clone()];
    for seed in 1..count {
        cases.push(ok(subject.case(&case.problem, tensors, seed))?);
    }
    Ok(cases)
}

/// Two forward passes with one plan, followed by their backward passes, produce the same bits as
/// each pair alone.
pub fn interleaved<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 3, work: 50_000 },
        |_| {},
        |subject, case| {
            let cases = siblings(subject, case, 2)?;
            let got = ok(subject.interleaved(&suite.backend, &cases))?;
            for (got, case) in got.iter().zip(&cases) {
                same_bits(got, &ok(subject.run(&suite.backend, case))?)?;
            }
            Ok(())
        },
    )
}

/// Threads that use one plan concurrently get the same bits as each alone.
pub fn threads_share_a_plan<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 3, work: 50_000 },
        |_| {},
        |subject, case| {
            let cases = siblings(subject, case, 3)?;
            let got = ok(subject.in_threads(&suite.backend, &cases))?;
            for (got, case) in got.iter().zip(&cases) {
                same_bits(got, &ok(subject.run(&suite.backend, case))?)?;
            }
            Ok(())
        },
    )
}

/// `accumulate` adds `d_r` and `d_b` to the contents of the buffers.
pub fn accumulate<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 3, work: 50_000 },
        |_| {},
        |subject, case| {
            let results = ok(subject.run(&suite.backend, case))?;
            let mut random = Random::new(3);
            let mut initial = |name| {
                let values = random.normals(results.get(name).len(), 1.0);
                match subject.weight_dtype() {
                    flashrnn_core::Dtype::F16 => rounded::<flashrnn_core::f16>(values),
                    flashrnn_core::Dtype::Bf16 => rounded::<flashrnn_core::bf16>(values),
                    _ => rounded::<f32>(values),
                }
            };
            let (d_r, d_b) = (initial("d_r"), initial("d_b"));
            let mut want = results.clone();
            for (name, initial) in [("d_r", &d_r), ("d_b", &d_b)] {
                for (want, initial) in want.get_mut(name).iter_mut().zip(initial) {
                    *want += initial;
                }
            }
            let options = CallOptions { add_to: Some((&d_r, &d_b)), ..CallOptions::default() };
            close(subject, case, &ok(subject.run_with(&suite.backend, case, options))?, &want)
        },
    )
}

/// An empty batch yields empty tensors and zero gradients of R and b, which add nothing when
/// accumulated.
pub fn empty_batch<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 2, work: 1000 },
        |setup| setup.problem.batch = 0,
        |subject, case| {
            let results = ok(subject.run(&suite.backend, case))?;
            for (name, values) in results.iter() {
                let correct = if ["d_r", "d_b"].contains(&name) {
                    !values.is_empty() && values.iter().all(|&v| v == 0.0)
                } else {
                    values.is_empty()
                };
                if !correct {
                    return Err(format!("{name} of an empty batch is {values:?}"));
                }
            }
            let ones = |name| vec![1.0; results.get(name).len()];
            let (d_r, d_b) = (ones("d_r"), ones("d_b"));
            let options = CallOptions { add_to: Some((&d_r, &d_b)), ..CallOptions::default() };
            let added = ok(subject.run_with(&suite.backend, case, options))?;
            if added.get("d_r") != d_r || added.get("d_b") != d_b {
                return Err("an empty batch changed the accumulated gradients".into());
            }
            let streamed = ok(subject.stream(&suite.backend, case))?;
            if streamed.get("last").is_empty() {
                Ok(())
            } else {
                Err("a step of an empty batch returned a state".into())
            }
        },
    )
}

/// Passes that use the caller's workspaces produce the same bits as passes that use the backend's
/// own memory, whatever the workspaces contain.
pub fn workspaces<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 4, work: 100_000 },
        |_| {},
        |subject, case| {
            let want = ok(subject.run(&suite.backend, case))?;
            let options = CallOptions { workspace: true, ..CallOptions::default() };
            same_bits(&ok(subject.run_with(&suite.backend, case, options))?, &want)
        },
    )
}

/// Passing `d_h` is equivalent to passing `d_states` with zeros for the other states.
pub fn gradient_of_h_only<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 3, work: 50_000 },
        |setup| setup.tensors.d_states = true,
        |subject, case| {
            let mut case = case.clone();
            let h: usize = ok(subject.shapes(&case.problem))?.h().iter().product();
            if let Some(d_states) = &mut case.d.d_states {
                d_states[h..].fill(0.0);
            }
            let options = CallOptions { h_only: true, ..CallOptions::default() };
            let want = ok(subject.run(&suite.backend, &case))?;
            close(subject, &case, &ok(subject.run_with(&suite.backend, &case, options))?, &want)
        },
    )
}

/// Inference, which saves nothing and here writes only one of `h`, `states` and `last`, agrees with
/// training.
pub fn inference<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 4, work: 50_000 },
        |_| {},
        |subject, case| {
            let want = ok(subject.run(&suite.backend, case))?.only(&["h", "states", "last"]);
            close(subject, case, &ok(subject.inference(&suite.backend, case))?, &want)
        },
    )
}

/// Beyond a row's length, every output is exactly 0, and NaN in `wx` and `d_states` changes no bit.
/// Neither does NaN in an initial state that a reset at the row's first step discards.
///
/// [`run`](crate::run()) fills every output buffer with NaN beforehand, so elements that a backend
/// does not write fail here (and in every other property).
pub fn padding_is_not_read<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 5, work: 50_000 },
        |setup| setup.tensors.lengths = true,
        |subject, case| {
            let shapes = ok(subject.shapes(&case.problem))?;
            let (units, lengths) = (shapes.units(), lengths(case));
            let mut poisoned = case.clone();
            // wx: [B, T, Gx, N, D], d_states: [S, B, T, N, D], s0: [S, B, N, D]
            for (b, &length) in lengths.iter().enumerate() {
                for t in length..shapes.time {
                    let token = shapes.token(b, t);
                    let input = shapes.external * units;
                    poisoned.inputs.wx[token * input..][..input].fill(f64::NAN);
                    for k in 0..shapes.states {
                        let at = (k * shapes.tokens() + token) * units;
                        if let Some(d_states) = &mut poisoned.d.d_states {
                            d_states[at..][..units].fill(f64::NAN);
                        }
                    }
                }
                let first = if case.problem.options.reverse { length.saturating_sub(1) } else { 0 };
                let reset = |resets: &Vec<u8>| length > 0 && resets[shapes.token(b, first)] != 0;
                if let Some(s0) = &mut poisoned.inputs.s0
                    && case.inputs.resets.as_ref().is_some_and(reset)
                {
                    for k in 0..shapes.states {
                        s0[(k * shapes.batch + b) * units..][..units].fill(f64::NAN);
                    }
                }
            }
            let got = ok(subject.run(&suite.backend, &poisoned))?;
            same_bits(&got, &ok(subject.run(&suite.backend, case))?)?;
            for (b, &length) in lengths.iter().enumerate() {
                for t in length..shapes.time {
                    let zero = |results: &Results, name, token: usize, width: usize| {
                        let part = &results.get(name)[token * width..][..width];
                        if part.iter().all(|&v| v == 0.0) {
                            Ok(())
                        } else {
                            Err(format!(
                                "{name} is not 0 in row {b}, step {t}, beyond its length {length}"
                            ))
                        }
                    };
                    let token = shapes.token(b, t);
                    zero(&got, "h", token, units)?;
                    zero(&got, "d_wx", token, shapes.external * units)?;
                    for k in 0..shapes.states {
                        zero(&got, "states", k * shapes.tokens() + token, units)?;
                    }
                }
            }
            Ok(())
        },
    )
}

/// A NaN in `wx` turns the same outputs to NaN as in the reference (clips must not lose it), and
/// changes no bit of the other rows.
pub fn nan_stays_nan<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 4, work: 20_000 },
        |setup| {
            setup.problem.time = setup.problem.time.max(2);
            setup.problem.options.forward_clip = setup.problem.options.forward_clip.or(Some(0.5));
        },
        |subject, case| {
            let shapes = ok(subject.shapes(&case.problem))?;
            let (units, input) = (shapes.units(), shapes.external * shapes.units());
            // The middle of the first row.
            let token = shapes.token(0, shapes.time / 2);
            let mut with_nan = case.clone();
            if input > 0 {
                with_nan.inputs.wx[token * input + input / 2] = f64::NAN;
            }
            let got = ok(subject.run(&suite.backend, &with_nan))?;
            let want = ok(subject.reference(&with_nan))?;
            for name in ["h", "states", "last"] {
                let differs = |(got, want): (&f64, &f64)| got.is_nan() != want.is_nan();
                if let Some(i) = got.get(name).iter().zip(want.get(name)).position(differs) {
                    return Err(format!(
                        "{name}[{i}] is {}, wanted {}",
                        got.get(name)[i],
                        want.get(name)[i]
                    ));
                }
            }
            let clean = ok(subject.run(&suite.backend, case))?;
            for b in 1..shapes.batch {
                for t in 0..shapes.time {
                    for (name, width) in [("h", units), ("d_wx", input)] {
                        let at = shapes.token(b, t) * width;
                        let row = |results: &Results| -> Vec<u64> {
                            results.get(name)[at..][..width].iter().map(|v| v.to_bits()).collect()
                        };
                        if row(&got) != row(&clean) {
                            return Err(format!(
                                "a NaN in row 0 changed {name} in row {b}, step {t}"
                            ));
                        }
                    }
                }
            }
            Ok(())
        },
    )
}
