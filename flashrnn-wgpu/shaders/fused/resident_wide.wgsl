// A piece of a line, kept in registers as f32.
struct Resident {
    //@ for $pair in 0..PAIRS_PER_PIECE
    p$pair: vec2f,
    //@ end
}
fn resident(piece: vec4u) -> Resident {
    var wide: Resident;
    //@ for $pair in 0..PAIRS_PER_PIECE
    wide.p$pair = pair_$pair(piece);
    //@ end
    return wide;
}
//@ for $pair in 0..PAIRS_PER_PIECE
fn resident_$pair(wide: Resident) -> vec2f { return wide.p$pair; }
//@ end
