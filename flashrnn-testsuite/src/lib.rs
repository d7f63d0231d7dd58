//! Properties that every flashrnn backend must have, as plain generic functions.
//!
//! 1. [`case`]: random cases from a seed. 2. [`run()`]: runs one on a backend. 3. [`results`]: what the f64 reference
//!    gives, the error of each tensor, and what it may be.

#![forbid(unsafe_code)]

pub mod case;
pub mod random;
pub mod results;
pub mod run;

pub use case::{Case, Tensors};
pub use results::{Measured, Results, errors, measure, tolerance};
pub use run::run;
