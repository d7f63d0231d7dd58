//! The built-in cells. Each overrides the derived backward with a shorter one; tests hold the two
//! equal.

mod elman;
mod gru;
mod lstm;
mod slstm;

pub use elman::Elman;
pub use gru::Gru;
pub use lstm::Lstm;
pub use slstm::Slstm;

use crate::Real;

/// Takes an infinite gate for the largest f32 of its sign, so that a formula with `exp(gate -
/// gate)` or `0 * gate` in it gives its limit there. Gradients pass, and a NaN stays.
#[inline(always)]
fn finite<R: Real>(gate: R) -> R {
    let most = f64::from(f32::MAX);
    gate.clamp_min(R::lit(-most)).clamp_max(R::lit(most)).with_gradient_of(gate)
}
