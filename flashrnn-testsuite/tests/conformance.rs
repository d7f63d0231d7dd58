//! Runs the suite on the f64 reference itself, and on faulty backends, which it must catch.

mod loops;

use flashrnn_testsuite::suite::Failures;
use flashrnn_testsuite::{Suite, properties};
use loops::{Fault, Loops};

mod reference {
    use super::loops::{Fault, Loops};

    flashrnn_testsuite::conformance!(
        Loops(Fault::None),
        same_bits_as: [Loops(Fault::None)],
        skip: [
            ("streaming_has_the_same_bits", "the reference carries its state in f64 in a call, and step rounds it"),
            ("chunks", "the reference carries its state in f64 in a call, and last rounds it"),
        ]
    );
}

/// Each faulty backend fails the property that should catch it.
#[test]
fn faults_are_caught() {
    type Property = fn(&Suite<Loops>) -> Failures;
    let faults: [(Fault, &str, Property); 21] = [
        (Fault::IgnoreS0, "reference", properties::reference),
        (Fault::IgnoreResets, "resets_split_sequences", properties::resets_split_sequences),
        (Fault::IgnoreReverse, "reverse_is_flipping", properties::reverse_is_flipping),
        (Fault::IgnoreForwardClip, "reference", properties::reference),
        (Fault::IgnoreGradClip, "reference", properties::reference),
        (Fault::IgnoreCut, "reference", properties::reference),
        (Fault::IgnoreDLast, "reference", properties::reference),
        (Fault::ForgetToWrite, "inference", properties::inference),
        (Fault::OverwriteInsteadOfAdding, "accumulate", properties::accumulate),
        (Fault::SavedInThePlan, "interleaved", properties::interleaved),
        (
            Fault::StepRoundsTheState,
            "streaming_has_the_same_bits",
            properties::streaming_has_the_same_bits,
        ),
        (Fault::TransposeR, "pytorch", properties::pytorch),
        (Fault::ReadPadding, "padding_is_not_read", properties::padding_is_not_read),
        (Fault::RoundTheWeightGradient, "master_weights", properties::master_weights),
        (Fault::AcceptWrongLengths, "bad_input", properties::bad_input),
        (Fault::AcceptAnyWeights, "foreign_weights", properties::foreign_weights),
        (Fault::ReadTheWorkspace, "workspaces", properties::workspaces),
        (Fault::SkipAnEmptyBatch, "empty_batch", properties::empty_batch),
        (Fault::OtherBits, "operations", properties::operations),
        (Fault::OverflowStates, "states_saturate", properties::states_saturate),
        (Fault::OtherBits, "same_bits_on_any_threads", properties::same_bits_on_any_threads),
    ];
    for (fault, name, property) in faults {
        let suite = Suite::new(Loops(fault), vec![Loops(Fault::None)], Vec::new());
        assert!(!property(&suite).is_empty(), "{name} does not detect {fault:?}");
    }
}

/// Skips of unknown properties and skips without a reason are errors.
#[test]
fn invalid_skips_are_caught() {
    for skip in [("no_such_property", "a reason"), ("chunks", " ")] {
        let suite = Suite::new(Loops(Fault::None), Vec::new(), vec![skip]);
        let check = || suite.check_skips(&["chunks"]);
        assert!(
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err(),
            "{skip:?} passed"
        );
    }
}
