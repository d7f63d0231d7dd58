//! The treatment of infinite gates.

use crate::Real;

/// Replaces an infinite gate by the largest f32 of its sign, so that formulas containing
/// `exp(gate - gate)` or `0 * gate` evaluate to their limit instead of NaN. The gradient passes
/// unchanged, and NaN stays NaN.
#[inline(always)]
pub(super) fn finite<R: Real>(gate: R) -> R {
    let max = f64::from(f32::MAX);
    gate.clamp_min(R::lit(-max)).clamp_max(R::lit(max)).with_gradient_of(gate)
}
