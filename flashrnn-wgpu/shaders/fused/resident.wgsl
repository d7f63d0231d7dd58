// Keeps a piece of a line in registers unconverted.
fn resident(piece: vec4u) -> vec4u { return piece; }
//@ for $pair in 0..PAIRS_PER_PIECE
fn resident_$pair(piece: vec4u) -> vec2f { return pair_$pair(piece); }
//@ end
