// A piece of a line: 8 numbers of T along k, in 4 pairs.
fn pair_0(piece: vec4u) -> vec2f { return widen2_FORMAT(piece.xx); }
fn pair_1(piece: vec4u) -> vec2f { return widen2_FORMAT(piece.yy); }
fn pair_2(piece: vec4u) -> vec2f { return widen2_FORMAT(piece.zz); }
fn pair_3(piece: vec4u) -> vec2f { return widen2_FORMAT(piece.ww); }
