//! The flashrnn recurrences on the CPU.
//!
//! A call is divided into tasks (a head and some rows of the batch), each of which goes through all time steps with its
//! part of R in the cache; large heads are shared by a team of threads, each with some of the units. Within a task a step
//! is a small product from packed panels, and then the cell's own function on vectors of units. The weight gradient is one
//! large product after the loop. Arithmetic is f32 (f64 for f64); f16 and bf16 are storage only.
//!
//! Reading order: [`Cpu`] (`plan`), `engine` (what a plan runs), `compiled` (a cell's part of it), `tasks`, `division` and `team` (who does what when),
//! `forward` and `backward` (one block of one step), `product` (where the time goes), `weight_grad`, `recompute`, `simd`.

mod arrays;
mod backward;
mod compiled;
mod division;
mod engine;
mod forward;
mod gather;
mod memory;
mod plan;
mod product;
mod recompute;
mod simd;
mod tasks;
mod team;
mod weight_grad;

pub use arrays::{Gradients, Inputs, OutputGradients, Outputs};
pub use plan::{Cpu, CpuPlan, Packed};
pub use product::PackedOrder;
pub use simd::Level;
