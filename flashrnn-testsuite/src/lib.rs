//! Properties that every flashrnn backend must have, as plain generic functions; one macro line a
//! backend.
//!
//! ```text
//! // tests/conformance.rs of a backend
//! flashrnn_testsuite::conformance!(Cpu::new(), same_bits_as: [Cpu::with_threads(1).unwrap()], skip: []);
//! ```
//!
//! A failure prints the shrunk case as Rust code, to be pasted into a test:
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
//! Without the feature `conformance`, on by default, there are the first three of these, and no
//! proptest.
//!
//! # Reading order
//! 1. [`case`]: random cases from a seed.
//! 2. [`run()`]: runs one on a backend, every output buffer full of NaN beforehand.
//! 3. [`results`]: what the f64 reference gives, the error of each tensor, and what it may be.
//! 4. [`subject`]: cells and element types, erased; [`cells`]: the suite's own cells.
//! 5. [`setup`] and [`suite`]: what proptest draws, and the loop over it.
//! 6. [`properties`], on [`map`], which moves rows, heads and steps about.

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

/// Writes a `#[test]` for each of the [`properties`], checked on a backend.
///
/// `same_bits_as` lists further instances of the backend that must give equal bits. `skip` lists
/// the properties that the backend can't have, each with its reason; a name that is no property's
/// fails. Where the backend may be missing, `where_found: $backend` and the others are `Option`s,
/// and whoever makes them says why there is none.
#[cfg(feature = "conformance")]
#[macro_export]
macro_rules! conformance {
    (
        where_found: $backend:expr
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
            gradient_of_h_alone
            head_permutation
            heads_one_by_one
            inference
            infinite_gates
            interleaved
            large_sizes
            lengths_are_rows_alone
            master_weights
            nan_stays_nan
            operation_gradients
            operations
            operations_on_denormals
            operations_on_special_values
            padding_is_not_read
            pytorch
            recompute
            reference
            resets_start_anew
            reverse_is_flipping
            same_bits_on_any_threads
            same_bits_twice
            slopes_in_the_tails
            states_saturate
            streaming
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
            where_found: Some($backend), same_bits_as: [$($(Some($other)),*)?], skip: [$(($skip, $reason)),*]
        }
    };
}
