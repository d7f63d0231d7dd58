//! The built-in cells. Each overrides the derived `backward` with a shorter one; tests check that
//! the two agree.

mod elman;
mod finite;
mod gru;
mod lstm;
mod slstm;

pub use elman::Elman;
pub use gru::Gru;
pub use lstm::Lstm;
pub use slstm::Slstm;
