// A piece of a line in registers, as f32.
struct Kept {
    //@ for $pair in 0..PAIRS_OF_PIECE
    p$pair: vec2f,
    //@ end
}
fn kept(piece: vec4u) -> Kept {
    var wide: Kept;
    //@ for $pair in 0..PAIRS_OF_PIECE
    wide.p$pair = pair_$pair(piece);
    //@ end
    return wide;
}
//@ for $pair in 0..PAIRS_OF_PIECE
fn kept_$pair(wide: Kept) -> vec2f { return wide.p$pair; }
//@ end
