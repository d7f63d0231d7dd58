//! The threads that compute a call, and their treatment of subnormal numbers.
//!
//! The calling thread takes part in its call and can finish it alone. Helper threads join while
//! there is work left and leave when there is none. At the end the call is closed, so that late
//! helpers do not see it, and the caller waits only for helpers that are still inside, each of
//! which is computing a part of this call. No thread ever runs another job while it waits, and a
//! call neither requires idle threads nor allocates.

mod board;
mod pool;
mod subnormals;
mod workers;

pub(crate) use pool::{Pool, default_threads};
pub use subnormals::Subnormals;
pub(crate) use workers::Workers;
