//! Permuting rows, heads or steps permutes the results in the same way.

use flashrnn_core::{Backend, Problem};

use crate::map::{Map, lengths};
use crate::random::Random;
use crate::results::Results;
use crate::suite::{Draw, Failures, Suite, close, ok};

/// Permuting the rows of a batch permutes the results.
pub fn batch_permutation<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 3, work: 50_000 },
        |_| {},
        |subject, case| {
            let shapes = ok(subject.shapes(&case.problem))?;
            let rows = Random::new(1).permutation(shapes.batch);
            let map = Map { rows, ..Map::new(&shapes, &shapes) };
            let want = map.results(&ok(subject.run(&suite.backend, case))?);
            let case = map.case(case);
            close(subject, &case, &ok(subject.run(&suite.backend, &case))?, &want)
        },
    )
}

/// Permuting the heads permutes the results.
pub fn head_permutation<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 3, work: 50_000 },
        |_| {},
        |subject, case| {
            let shapes = ok(subject.shapes(&case.problem))?;
            let heads = Random::new(2).permutation(shapes.heads);
            let map = Map { heads, ..Map::new(&shapes, &shapes) };
            let want = map.results(&ok(subject.run(&suite.backend, case))?);
            let case = map.case(case);
            close(subject, &case, &ok(subject.run(&suite.backend, &case))?, &want)
        },
    )
}

/// Several heads in one problem agree with each head run by itself.
pub fn heads_one_by_one<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 3, work: 50_000 },
        |_| {},
        |subject, case| {
            let shapes = ok(subject.shapes(&case.problem))?;
            let one = ok(subject.shapes(&Problem { heads: 1, ..case.problem.clone() }))?;
            let got = ok(subject.run(&suite.backend, case))?;
            let mut want = got.zeroed();
            for head in 0..shapes.heads {
                let map = Map { heads: vec![head], ..Map::new(&shapes, &one) };
                map.paste(&ok(subject.run(&suite.backend, &map.case(case)))?, &mut want);
            }
            close(subject, case, &got, &want)
        },
    )
}

/// `reverse` is equivalent to flipping each row within its length before and after.
pub fn reverse_is_flipping<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 4, work: 50_000 },
        |setup| setup.problem.options.reverse = true,
        |subject, case| {
            let shapes = ok(subject.shapes(&case.problem))?;
            let lengths = lengths(case);
            let flip = |b: usize, t: usize| if t < lengths[b] { lengths[b] - 1 - t } else { t };
            let map = Map { step: &flip, ..Map::new(&shapes, &shapes) };
            let mut flipped = map.case(case);
            flipped.problem.options.reverse = false;
            let want: Results = map.results(&ok(subject.run(&suite.backend, &flipped))?);
            close(subject, case, &ok(subject.run(&suite.backend, case))?, &want)
        },
    )
}
