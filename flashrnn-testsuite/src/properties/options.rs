//! Compares the operator with the f64 reference, and checks options that must not change the
//! result.

use flashrnn_core::{Backend, Dtype, Layout, Options, Save, bf16, f16};

use crate::map::Map;
use crate::setup::Setup;
use crate::suite::{Draw, Failures, Suite, close, ok};

/// The forward pass and every gradient agree with the f64 reference, for all cells, element types
/// and sizes, and all options except `tf32`.
pub fn reference<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 16, work: 200_000 },
        |_| {},
        |subject, case| {
            close(
                subject,
                case,
                &ok(subject.run(&suite.backend, case))?,
                &ok(subject.reference(case))?,
            )
        },
    )
}

/// The operator agrees with the f64 reference for larger heads, larger batches and longer sequences
/// than the other properties have time for.
pub fn large_sizes<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(LARGE, enlarge, |subject, case| {
        close(subject, case, &ok(subject.run(&suite.backend, case))?, &ok(subject.reference(case))?)
    })
}

/// The number and size of setups for [`enlarge`].
pub(crate) const LARGE: Draw = Draw { cases: 3, work: 1000 };

/// Makes one size of a setup so large that backends share a head among threads, or split the batch
/// or the time.
pub(crate) fn enlarge(setup: &mut Setup) {
    let problem = &mut setup.problem;
    problem.heads = problem.heads.min(2);
    let choice = setup.seed as usize / 3;
    match setup.seed % 3 {
        0 => {
            problem.batch = problem.batch.min(2);
            problem.time = problem.time.min(3);
            problem.head_dim = [192, 255, 256, 257, 384][choice % 5];
        }
        1 => {
            problem.batch = [64, 100, 129, 257][choice % 4];
            problem.time = problem.time.min(3);
            problem.head_dim = problem.head_dim.min(33);
        }
        _ => {
            problem.batch = problem.batch.min(3);
            problem.time = [95, 97, 130, 257, 300][choice % 5];
            problem.head_dim = problem.head_dim.min(17);
        }
    }
}

/// The operator agrees with the f64 reference for input pre-activations of ±90, where exp overflows
/// in f32 and sigmoid is 0 or 1.
pub fn extreme_inputs<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 6, work: 20_000 },
        |setup| setup.tensors.extreme = true,
        |subject, case| {
            close(
                subject,
                case,
                &ok(subject.run(&suite.backend, case))?,
                &ok(subject.reference(case))?,
            )
        },
    )
}

/// [`Save::Recompute`] and [`Save::Gates`] agree up to rounding.
pub fn recompute<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 4, work: 50_000 },
        |setup| setup.problem.options.save = Save::Gates,
        |subject, case| {
            let mut other = case.clone();
            other.problem.options.save = Save::Recompute;
            let want = ok(subject.run(&suite.backend, case))?;
            close(subject, case, &ok(subject.run(&suite.backend, &other))?, &want)
        },
    )
}

/// Time-major and batch-major tensors yield the same results.
pub fn time_major<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 4, work: 50_000 },
        |setup| setup.problem.options.layout = Layout::BatchMajor,
        |subject, case| {
            let from = ok(subject.shapes(&case.problem))?;
            let to = ok(subject.shapes(
                &case.problem.with(Options { layout: Layout::TimeMajor, ..case.problem.options }),
            ))?;
            let map = Map::new(&from, &to);
            let want = map.results(&ok(subject.run(&suite.backend, case))?);
            let case = map.case(case);
            close(subject, &case, &ok(subject.run(&suite.backend, &case))?, &want)
        },
    )
}

/// With 16-bit tensors and f32 weights, `d_r` and `d_b` are not rounded to the tensors' type: a
/// large enough gradient has an element that this type cannot represent.
pub fn master_weights<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 2, work: 20_000 },
        |setup| {
            setup.problem.batch = setup.problem.batch.max(3);
            setup.problem.time = setup.problem.time.max(5);
            setup.problem.head_dim = setup.problem.head_dim.max(7);
            setup.tensors = crate::Tensors::PLAIN;
        },
        |subject, case| {
            if subject.weight_dtype() == subject.dtype() {
                return Ok(());
            }
            let results = ok(subject.run(&suite.backend, case))?;
            close(subject, case, &results, &ok(subject.reference(case))?)?;
            let narrow = |v: f64| match subject.dtype() {
                Dtype::F16 => f16::from_f64(v).to_f64() == v,
                _ => bf16::from_f64(v).to_f64() == v,
            };
            for name in ["d_r", "d_b"] {
                if results.get(name).iter().all(|&v| narrow(v)) {
                    return Err(format!("{name} was rounded to {}", subject.dtype()));
                }
            }
            Ok(())
        },
    )
}
