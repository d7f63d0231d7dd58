// The factors of the gradient of R: two unconverted units of a token.

fn bits2(x: vec2f) -> vec2u {
    if !NARROW { return bitcast<vec2u>(x); }
    return vec2u(narrow(x.x) | (narrow(x.y) << 16u), 0u);
}

// dg of a gate.
fn dg_bits(token: u32, gate: u32, place: u32) -> vec2u {
    if gate >= INNER { return fetch2_d_wx((token * EXTERNAL + gate - INNER) * units() + place); }
    return bits2(load2_work(params.inner_at + (token * INNER + gate) * units() + place));
}

// The h that a token's step read.
fn h_bits(previous: Previous, place: u32) -> vec2u {
    if !previous.exists { return vec2u(); }
    if !previous.first { return fetch2_states(previous.at * units() + place); }
    let h = load2_work(params.s0_at + state_index(0u, previous.at, place));
    return bits2(vec2f(saturated(h.x), saturated(h.y)));
}
