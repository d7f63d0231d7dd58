//! The test harness: a backend under test, its skips, and the loop over subjects and random setups.

use std::sync::atomic::{AtomicUsize, Ordering};

use flashrnn_core::Backend;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::case::Case;
use crate::random::Random;
use crate::results::Results;
use crate::setup::{Setup, any_setup};
use crate::subject::{Subject, subjects};

/// A backend under test.
pub struct Suite<B> {
    /// The backend.
    pub backend: B,
    /// Further instances that must produce equal bits, for example with another number of threads.
    pub same_bits_as: Vec<B>,
    /// The names of properties that this backend can't have, with reasons.
    skips: Vec<(&'static str, &'static str)>,
}

/// Messages, one per failure.
pub type Failures = Vec<String>;

/// The number and size of the random setups that a property draws for each subject.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// The number of setups per subject. The environment variable `FLASHRNN_CASES` multiplies it.
    pub cases: u32,
    /// The approximate limit on multiplications per gate in the forward pass.
    pub work: usize,
}

impl<B: Backend> Suite<B> {
    /// Makes a suite for `backend`. Each skip is the name of a property and a reason.
    pub fn new(backend: B, same_bits_as: Vec<B>, skips: Vec<(&'static str, &'static str)>) -> Self {
        Self { backend, same_bits_as, skips }
    }

    /// Checks one property, unless it is skipped.
    ///
    /// # Panics
    /// If the backend does not have the property. The message lists every failure.
    pub fn check(&self, name: &str, property: fn(&Self) -> Failures) {
        if let Some((_, reason)) = self.skips.iter().find(|(skipped, _)| *skipped == name) {
            println!("{name} skipped: {reason}");
            return;
        }
        let failures = property(self);
        assert!(
            failures.is_empty(),
            "{name}: {} failures\n\n{}",
            failures.len(),
            failures.join("\n\n")
        );
    }

    /// Checks that every skip names one of the properties in `names` and has a reason.
    ///
    /// # Panics
    /// If a skip does not.
    pub fn check_skips(&self, names: &[&str]) {
        for (name, reason) in &self.skips {
            assert!(names.contains(name), "skip of the unknown property {name}");
            assert!(!reason.trim().is_empty(), "skip of {name} without a reason");
        }
    }

    /// Runs `check` on random setups for every subject, and returns the shrunk failure of each.
    ///
    /// `adapt` adjusts a setup to the property's requirements.
    pub fn each(
        &self,
        draw: Draw,
        adapt: impl Fn(&mut Setup),
        check: impl Fn(&dyn Subject<B>, &Case) -> Result<(), String>,
    ) -> Failures {
        // Two properties checked concurrently start with different subjects, so that each finds
        // kernels that the other has already compiled.
        static CHECKED: AtomicUsize = AtomicUsize::new(0);
        let subjects = subjects(&self.backend);
        let first = CHECKED.fetch_add(1, Ordering::Relaxed) % 2 * (subjects.len() / 2);
        let mut failures = Failures::new();
        for (index, subject) in subjects.iter().enumerate().cycle().skip(first).take(subjects.len())
        {
            let adapted = |mut setup: Setup| {
                adapt(&mut setup);
                setup
            };
            let outcome = runner(draw.cases, index as u64).run(&any_setup(draw.work), |setup| {
                let setup = adapted(setup);
                let case = subject
                    .case(&setup.problem, setup.tensors, setup.seed)
                    .map_err(|error| TestCaseError::fail(error.to_string()))?;
                check(subject.as_ref(), &case).map_err(TestCaseError::fail)
            });
            let [cell, t, w] = subject.types();
            match outcome {
                Ok(()) => {}
                Err(TestError::Fail(reason, setup)) => failures.push(format!(
                    "{cell} with T = {t}, W = {w}: {reason}\nreproduce with\n{:?}\n\
                     let case = Case::random::<_, {t}, {w}>(&{cell}, &problem, tensors, seed)?;\n\
                     let results = run::<_, _, {t}, {w}>(&backend, &{cell}, &case)?;\n\
                     println!(\"{{:#?}}\", measure(&{cell}, &case, {t}::DTYPE, &results)?);",
                    adapted(setup)
                )),
                Err(TestError::Abort(reason)) => {
                    failures.push(format!("{cell}, {t}, {w}: gave up: {reason}"))
                }
            }
        }
        failures
    }
}

/// Makes a proptest runner that draws the same cases every time and writes no files.
fn runner(cases: u32, stream: u64) -> TestRunner {
    let factor = std::env::var("FLASHRNN_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1u32);
    let config = Config {
        cases: cases.saturating_mul(factor),
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    };
    let mut random = Random::new(stream);
    let seed: Vec<u8> = (0..4).flat_map(|_| random.bits().to_le_bytes()).collect();
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

/// Converts a backend's error to a failure message.
pub fn ok<V>(result: flashrnn_core::Result<V>) -> Result<V, String> {
    result.map_err(|error| error.to_string())
}

/// Checks that `got` equals `want` up to rounding, where both are results of `case`.
///
/// # Errors
/// Names each tensor whose error is too large.
pub fn close<B: Backend>(
    subject: &dyn Subject<B>,
    case: &Case,
    got: &Results,
    want: &Results,
) -> Result<(), String> {
    let wrong: Vec<String> = ok(subject.compare(case, got, want))?
        .into_iter()
        .filter(|m| !m.passes())
        .map(|m| format!("{}: relative error {:.3e}, allowed {:.3e}", m.tensor, m.error, m.allowed))
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// Checks that every tensor of `want` has equal bits in `got`.
///
/// # Errors
/// Names each tensor that differs.
pub fn same_bits(got: &Results, want: &Results) -> Result<(), String> {
    let mut wrong = Vec::new();
    for (name, want) in want.iter() {
        let got = got.get(name);
        let differs = |i: &usize| got[*i].to_bits() != want[*i].to_bits();
        if got.len() != want.len() {
            wrong.push(format!("{name}: {} elements, wanted {}", got.len(), want.len()));
        } else if let Some(i) = (0..want.len()).find(differs) {
            let count = (0..want.len()).filter(differs).count();
            wrong.push(format!(
                "{name}: {count} of {} elements differ in their bits, the first at [{i}]: {:e}, \
                 wanted {:e}",
                want.len(),
                got[i],
                want[i]
            ));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}
