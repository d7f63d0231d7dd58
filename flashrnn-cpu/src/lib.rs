//! The flashrnn recurrences on the CPU.
//!
//! A call is divided into tasks (a head and some rows of the batch), each of which goes through all
//! time steps with its part of R in the cache; large heads are shared by a team of threads, each
//! with some of the units. Within a task a step is a small product from packed panels, and then the
//! cell's own function on vectors of units. The weight gradient is one large product after the
//! loop. Arithmetic is f32 (f64 for f64); f16 and bf16 are storage only.
//!
//! Subnormal numbers of f32 and f64 are flushed to zero by default: [`Subnormals`].
//!
//! Reading order: [`Cpu`] (`plan`), `engine` (what a plan runs), `compiled` (a cell's part of it),
//! `time_loop`, `tasks`, `division` and `team` (who does what when), `threads` and `workers` (who
//! there is), `forward` and `backward` (one block of one step), `product` and `tile` (where the
//! time goes), `weight_grad`, `recompute`, `memory`, `simd`.

#[cfg(feature = "ndarray")]
mod arrays;
mod batched;
mod cell_kernel;
mod engine;
mod kernel;
mod memory;
mod plan;
mod schedule;
mod simd;
mod threads;

#[cfg(feature = "ndarray")]
pub use arrays::{Gradients, Inputs, OutputGradients, Outputs};
pub use kernel::packed::Packed;
pub use kernel::product::PackedOrder;
/// The crate whose arrays [`CpuPlan::forward_arrays`] takes.
#[cfg(feature = "ndarray")]
pub use ndarray;
pub use plan::{Cpu, CpuPlan};
pub use simd::Level;
pub use threads::subnormals::Subnormals;
