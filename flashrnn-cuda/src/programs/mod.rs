//! The programs of this crate: the kernel sources, each combined with a cell, element types and a
//! layout (`sources.rs`), and the list of those that a test compiles (`all.rs`).

mod all;
mod sources;

pub use all::all;
pub use sources::{
    CellSource, Features, Waits, backward_step, forward_step, fused_backward, fused_forward, grid,
    recompute, weight_grad,
};
