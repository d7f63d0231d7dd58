//! The passes of a plan: methods of [`Engine`](crate::engine::Engine).

mod backward;
mod forward;
pub mod pack;
