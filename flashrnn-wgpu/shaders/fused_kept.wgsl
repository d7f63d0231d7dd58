// A piece of a line in registers, as it lies in memory.
fn kept(piece: vec4u) -> vec4u { return piece; }
//@ for $pair in 0..PAIRS_OF_PIECE
fn kept_$pair(piece: vec4u) -> vec2f { return pair_$pair(piece); }
//@ end
