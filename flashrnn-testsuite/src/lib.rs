//! The conformance suite: properties that every flashrnn backend must have, written as generic
//! functions. One macro call tests a backend.
//!
//! ```text
//! // tests/conformance.rs of a backend
//! flashrnn_testsuite::conformance!(
//!     Cpu::new(),
//!     same_bits_as: [Cpu::with_threads(1).unwrap()],
//!     skip: []
//! );
//! ```
//!
//! A failure prints the shrunk case as Rust code to paste into a test:
//!
//! ```
//! use flashrnn_core::{Backend, Element, Gru, Layout, Options, Problem, Result, Save, f16};
//! use flashrnn_testsuite::{Case, Tensors, measure, run};
//!
//! fn reproduce<B: Backend>(backend: B) -> Result<()> {
//!     let problem = Problem::new(7, 8, 3, 32).with(Options {
//!         layout: Layout::BatchMajor,
//!         reverse: true,
//!         save: Save::Gates,
//!         ..Options::default()
//!     });
//!     let tensors = Tensors { lengths: true, ..Tensors::PLAIN };
//!     let seed = 545241204;
//!     let case = Case::random::<_, f16, f16>(&Gru, &problem, tensors, seed)?;
//!     let results = run::<_, _, f16, f16>(&backend, &Gru, &case)?;
//!     println!("{:#?}", measure(&Gru, &case, f16::DTYPE, &results)?);
//!     Ok(())
//! }
//! ```
//!
//! The feature `conformance` is on by default. Without it, the crate contains only the first three
//! items below and [`cells`], and does not depend on proptest.
//!
//! # Reading order
//! 1. [`case`]: random cases from a seed.
//! 2. [`run()`]: runs a case on a backend, with every output buffer filled with NaN beforehand.
//! 3. [`results`]: the results of the f64 reference, the error of each tensor and its tolerance.
//! 4. [`subject`]: type-erased cells and element types; [`cells`]: the suite's own cells.
//! 5. [`setup`] and [`suite`]: the setups that proptest draws, and the loop over them.
//! 6. [`properties`], which use [`map`] to permute rows, heads and steps.

#![forbid(unsafe_code)]

pub mod case;
pub mod cells;
#[cfg(feature = "conformance")]
pub mod map;
#[cfg(feature = "conformance")]
pub mod properties;
pub mod random;
pub mod results;
pub mod run;
#[cfg(feature = "conformance")]
pub mod setup;
#[cfg(feature = "conformance")]
pub mod subject;
#[cfg(feature = "conformance")]
pub mod suite;

pub use case::{Case, Tensors};
pub use flashrnn_core::Backend;
pub use results::{Measured, Results, compare, errors, measure, tolerance};
pub use run::run;
#[cfg(feature = "conformance")]
pub use suite::Suite;

/// Defines a `#[test]` for each of the [`properties`], which checks it on a backend.
///
/// `same_bits_as` lists further instances of the backend that must produce equal bits. `skip` lists
/// the properties that the backend can't have, each with its reason; the name of an unknown
/// property is an error. For a backend that may be missing on the machine, pass
/// `if_available: $backend`, where the backend and the further instances are `Option`s. With `None`
/// every test passes; the expression should report why the backend is missing.
#[cfg(feature = "conformance")]
#[macro_export]
macro_rules! conformance {
    (
        if_available: $backend:expr
        $(, same_bits_as: [$($other:expr),* $(,)?])?
        , skip: [$(($skip:literal, $reason:literal)),* $(,)?] $(,)?
    ) => {
        fn suite() -> Option<$crate::Suite<impl $crate::Backend>> {
            let others: Vec<Option<_>> = vec![$($($other),*)?];
            let others = others.into_iter().flatten().collect();
            Some($crate::Suite::new($backend?, others, vec![$(($skip, $reason)),*]))
        }
        $crate::conformance! { @tests suite
            accumulate
            bad_input
            batch_permutation
            chunks
            empty_batch
            extreme_inputs
            foreign_weights
            gradient_of_h_only
            head_permutation
            heads_one_by_one
            inference
            infinite_gates
            interleaved
            large_sizes
            rows_match_single_rows
            master_weights
            nan_stays_nan
            operation_gradients
            operations
            operations_on_subnormals
            operations_on_special_values
            padding_is_not_read
            pytorch
            recompute
            reference
            resets_split_sequences
            reverse_is_flipping
            same_bits_on_any_threads
            same_bits_twice
            slopes_in_the_tails
            states_saturate
            streaming
            streaming_has_the_same_bits
            threads_share_a_plan
            time_major
            workspaces
        }
    };
    (@tests $suite:ident $($property:ident)*) => {
        $(
            #[test]
            fn $property() {
                if let Some(suite) = $suite() {
                    suite.check(stringify!($property), $crate::properties::$property);
                }
            }
        )*
        #[test]
        fn every_skip_is_known() {
            if let Some(suite) = $suite() {
                suite.check_skips(&[$(stringify!($property)),*]);
            }
        }
    };
    (
        $backend:expr
        $(, same_bits_as: [$($other:expr),* $(,)?])?
        , skip: [$(($skip:literal, $reason:literal)),* $(,)?] $(,)?
    ) => {
        $crate::conformance! {
            if_available: Some($backend),
            same_bits_as: [$($(Some($other)),*)?],
            skip: [$(($skip, $reason)),*]
        }
    };
}
