// Widens f16 by the driver's conversion, which probe/native_f16.wgsl has found to be exact.
fn widen_f16(bits: u32) -> f32 { return unpack2x16float(bits).x; }
fn widen2_f16(bits: vec2u) -> vec2f { return unpack2x16float(bits.x); }
