// Rounds x to T: `rounded` as gradients and weights are, `saturated` as states are.
fn rounded(x: f32) -> f32 { return widen_FORMAT(narrow_FORMAT(x)); }
fn saturated(x: f32) -> f32 { return widen_FORMAT(saturate_FORMAT(x)); }
fn narrow(x: f32) -> u32 { return narrow_FORMAT(x); }
// Widens two adjacent elements.
fn widen2(bits: vec2u) -> vec2f { return widen2_FORMAT(bits); }
