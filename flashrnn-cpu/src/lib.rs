//! The flashrnn recurrences on the CPU.
//!
//! A call is divided into tasks. A task covers one head and some rows of the batch, and runs all
//! time steps with its part of R in the cache. A team of threads shares a large head, and each
//! thread computes some of the head's units. Each step of a task multiplies by packed panels of R,
//! then applies the cell's function to vectors of units. After the loop, the weight gradient is one
//! large product. Arithmetic is in f32, or in f64 for f64 tensors; f16 and bf16 are storage formats
//! only.
//!
//! Subnormal numbers of f32 and f64 are flushed to zero by default; see [`Subnormals`].
//!
//! # Reading order
//! A call passes through three stages: the plan (`plan`) checks it, the engine (`engine`) runs it
//! for one element type and instruction set, and the cell's kernel (`cell_kernel`) computes blocks
//! of it. `dispatch` selects the engine and the kernel when a plan is made. They use
//!
//! - `schedule`, which divides a call into tasks and teams and runs the time loop,
//! - `kernel`, which computes one block of one step (the product, which takes most of the time,
//!   then the cell),
//! - `batched`, which computes the products over all steps, before and after the time loop,
//! - `simd`, the vectors that a cell computes with,
//! - `threads` and `memory`.

#[cfg(feature = "ndarray")]
mod arrays;
mod backend;
mod batched;
mod cell_kernel;
mod cpu;
mod dispatch;
mod engine;
mod kernel;
mod memory;
mod plan;
mod schedule;
mod simd;
mod threads;

#[cfg(feature = "ndarray")]
pub use arrays::{Gradients, Inputs, OutputGradients, Outputs};
pub use cpu::Cpu;
pub use kernel::{Packed, PackedOrder};
/// The crate that defines the arrays of [`CpuPlan::forward_arrays`].
#[cfg(feature = "ndarray")]
pub use ndarray;
pub use plan::CpuPlan;
pub use simd::Level;
pub use threads::Subnormals;

/// The README's example, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
