// Widens f16 by integer operations, for drivers whose conversion is not exact.
fn widen_f16(bits: u32) -> f32 {
    let sign = (bits & 0x8000u) << 16u;
    let magnitude = bits & 0x7fffu;
    if magnitude < 0x400u {
        return bitcast<f32>(bitcast<u32>(f32(magnitude) * 5.9604644775390625e-8f) | sign);
    }
    let exponent = select(0x38000000u, 0x70000000u, magnitude >= 0x7c00u);
    return bitcast<f32>(((magnitude << 13u) + exponent) | sign);
}
fn widen2_f16(bits: vec2u) -> vec2f {
    return vec2f(widen_f16(bits.x & 0xffffu), widen_f16(bits.x >> 16u));
}
