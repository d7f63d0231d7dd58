// A piece of a line: 4 numbers along k, in 2 pairs.
fn pair_0(piece: vec4u) -> vec2f { return bitcast<vec2f>(piece.xy); }
fn pair_1(piece: vec4u) -> vec2f { return bitcast<vec2f>(piece.zw); }
