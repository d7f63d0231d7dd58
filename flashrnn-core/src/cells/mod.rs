//! The built-in cells. Each overrides the derived backward with a shorter one; tests hold the two equal.

mod elman;
mod gru;
mod lstm;
mod slstm;

pub use elman::Elman;
pub use gru::Gru;
pub use lstm::Lstm;
pub use slstm::Slstm;
