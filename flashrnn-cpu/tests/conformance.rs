//! Tests the properties that every backend must have, with the machine's best instruction set and
//! with the others.

use flashrnn_core::{Backend, Cell, Error, Gate, Problem, Real};
use flashrnn_cpu::{Cpu, Level, Subnormals};
use flashrnn_testsuite::{Suite, properties};

flashrnn_testsuite::conformance!(
    Cpu::new(),
    same_bits_as: [
        Cpu::with_threads(1).unwrap(),
        Cpu::with_threads(2).unwrap(),
        Cpu::with_threads(5).unwrap()
    ],
    skip: [("operations_on_subnormals", "flushed by default; checked below with `Keep`")]
);

/// Returns a backend for this level, or a portable one if the machine does not support it.
fn cpu(level: Level) -> Cpu {
    Cpu::new().with_level(level).unwrap_or_else(|lacking| {
        println!("{lacking}: testing the portable kernels instead");
        Cpu::new().with_level(Level::Portable).expect("every machine has it")
    })
}

mod avx2 {
    use super::{Level, cpu};
    flashrnn_testsuite::conformance!(
        cpu(Level::Avx2),
        skip: [("operations_on_subnormals", "flushed by default; checked below with `Keep`")]
    );
}

mod portable {
    use super::{Level, cpu};
    flashrnn_testsuite::conformance!(
        cpu(Level::Portable),
        skip: [("operations_on_subnormals", "flushed by default; checked below with `Keep`")]
    );
}

#[test]
fn kept_subnormals_are_computed_with() {
    for level in Level::available() {
        let suite = Suite::new(cpu(level).with_subnormals(Subnormals::Keep), vec![], vec![]);
        suite.check("operations_on_subnormals", properties::operations_on_subnormals);
    }
}

/// A user's cell that claims to be built in.
#[derive(Clone)]
struct Impostor;

impl Cell for Impostor {
    const NAME: &'static str = "impostor";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &[Gate::both("g")];
    const BUILT_IN: bool = true;
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 1];

    fn forward<R: Real>(&self, _: [R; 1], gates: [R; 1]) -> [R; 1] {
        gates
    }
}

#[test]
fn a_cell_that_only_claims_to_be_built_in_is_refused() {
    let plan = Cpu::new().plan::<f32, f32, _>(&Impostor, &Problem::new(1, 1, 1, 1));
    assert!(matches!(plan.map(|_| ()), Err(Error::Unsupported { backend: "cpu", .. })));
}
