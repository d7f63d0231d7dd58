//! The computations of a plan, as methods of [`Engine`](crate::engine::Engine).

mod backward;
mod forward;
mod pack;
mod recompute;
mod weight_grad;
