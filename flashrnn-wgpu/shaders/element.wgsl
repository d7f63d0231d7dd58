// The element types as bits: an f32 is a u32, and two 16-bit elements share a u32. Arithmetic is
// f32. A load widens; a store rounds to nearest, ties to even (the built-in pack2x16float may round
// otherwise). States and gates saturate: values beyond the range of a 16-bit T, including
// infinities, become the largest finite number. Gradients and weights become infinite.

fn widen_f32(bits: u32) -> f32 { return bitcast<f32>(bits); }
fn narrow_f32(x: f32) -> u32 { return bitcast<u32>(x); }

// For states and gates. The bits of the largest finite number precede those of infinity.
fn saturate_f32(x: f32) -> u32 { return narrow_f32(x); }

fn saturate_bf16(x: f32) -> u32 {
    let bits = narrow_bf16(x);
    return bits - u32((bits & 0x7fffu) == 0x7f80u);
}

fn saturate_f16(x: f32) -> u32 {
    let bits = narrow_f16(x);
    return bits - u32((bits & 0x7fffu) == 0x7c00u);
}

// Widens two adjacent elements that `fetch2_` returned. Two 16-bit elements share the first word.
fn widen2_f32(bits: vec2u) -> vec2f { return bitcast<vec2f>(bits); }
fn widen2_bf16(bits: vec2u) -> vec2f {
    return vec2f(bitcast<f32>(bits.x << 16u), bitcast<f32>(bits.x & 0xffff0000u));
}

fn widen_bf16(bits: u32) -> f32 { return bitcast<f32>(bits << 16u); }

fn narrow_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if (bits & 0x7fffffffu) > 0x7f800000u { return (bits >> 16u) | 0x40u; }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn narrow_f16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u { return sign | 0x7e00u; }
    if magnitude >= 0x47800000u { return sign | 0x7c00u; }
    if magnitude < 0x38800000u {
        // Below 2^-14 the spacing is 2^-24, which is that of f32 in [0.5, 1), so the sum rounds.
        return sign | (bitcast<u32>(bitcast<f32>(magnitude) + 0.5f) - 0x3f000000u);
    }
    return sign | (((magnitude + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u) - 0x1c000u);
}
