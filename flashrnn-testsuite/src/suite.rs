//! The harness: a backend under test, its skips, and the loop over subjects and random setups.

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
    /// Further instances that must give equal bits (other thread counts, say).
    pub same_bits_as: Vec<B>,
    /// Properties that this backend can't have, and why.
    skips: Vec<(&'static str, &'static str)>,
}

/// What went wrong, one entry a failure.
pub type Failures = Vec<String>;

/// How many random setups a property draws for each subject, and how large.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Setups for each cell and element type; the environment variable `FLASHRNN_CASES` multiplies
    /// it.
    pub cases: u32,
    /// About how many multiplications a gate may cost in the forward pass.
    pub work: usize,
}

impl<B: Backend> Suite<B> {
    /// A suite for `backend`; each skip is the name of a property and the reason.
    pub fn new(backend: B, same_bits_as: Vec<B>, skips: Vec<(&'static str, &'static str)>) -> Self {
        Self { backend, same_bits_as, skips }
    }

    /// Checks one property, unless it is skipped, and panics with every failure.
    ///
    /// # Panics
    /// Where the backend does not have the property; this is what fails a test.
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

    /// Checks that every skip names a property, and gives a reason.
    ///
    /// # Panics
    /// Where one does not.
    pub fn check_skips(&self, names: &[&str]) {
        for (name, reason) in &self.skips {
            assert!(names.contains(name), "skip of the unknown property {name}");
            assert!(!reason.trim().is_empty(), "skip of {name} without a reason");
        }
    }

    /// Runs `check` on random setups for every subject, and returns the failure of each, shrunk.
    ///
    /// `adapt` fixes what the property needs fixed.
    pub fn each(
        &self,
        draw: Draw,
        adapt: impl Fn(&mut Setup),
        check: impl Fn(&dyn Subject<B>, &Case) -> Result<(), String>,
    ) -> Failures {
        // Properties that are checked at the same time begin at different subjects: a kernel that
        // one had compiled is there for the other.
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

/// A proptest runner that draws the same cases every time. It writes no files.
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

/// A backend's error as a failure.
pub fn ok<V>(result: flashrnn_core::Result<V>) -> Result<V, String> {
    result.map_err(|error| error.to_string())
}

/// That `got` is `want` to rounding, where both are results of `case`.
///
/// # Errors
/// A line for each tensor that is too far off.
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

/// That every tensor of `want` has equal bits in `got`.
///
/// # Errors
/// A line for each tensor that differs.
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
                "{name}: {count} of {} differ in their bits, first [{i}]: {:e}, wanted {:e}",
                want.len(),
                got[i],
                want[i]
            ));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}
