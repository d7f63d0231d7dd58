// x as a tensor of T holds it.
fn rounded(x: f32) -> f32 { return widen_FORMAT(narrow_FORMAT(x)); }
