// f16 by the driver's own conversion, which unpacks.wgsl has found exact.
fn widen_f16(bits: u32) -> f32 { return unpack2x16float(bits).x; }
fn widen2_f16(bits: vec2u) -> vec2f { return unpack2x16float(bits.x); }
