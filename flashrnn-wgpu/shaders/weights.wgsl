// The packed weights, f32, in pieces of 4 along k, the last of a line filled up with zeros: R [Gr,
// N, D_out, pieces of D_in] rounded to T, R transposed [N, D_in, Gr, pieces of D_out], and b [G, N,
// D], filled up with zeros as a whole. Behind them, for the fused kernels, R once more in T, as
// their threads read it (pack_fused.wgsl).

// Pieces of a line.
fn pieces() -> u32 { return (params.head_dim + 3u) / 4u; }

// The line of R of a gate and unit, to be followed by its pieces.
fn line_of_r(gate: u32, head: u32, unit: u32) -> u32 {
    return ((gate * params.heads + head) * params.head_dim + unit) * pieces();
}

// The line of R transposed of a unit that dg multiplies: its pieces for one recurrent gate after
// another.
fn line_of_transposed(head: u32, unit: u32) -> u32 {
    return (RECURRENT * units() + (head * params.head_dim + unit) * RECURRENT) * pieces();
}

// b of a gate and of a unit among the N D.
fn bias(gate: u32, place: u32) -> f32 {
    let i = gate * units() + place;
    return bitcast<f32>(weights[2u * RECURRENT * units() * pieces() + i / 4u][i % 4u]);
}

// How many pieces these are.
fn step_pieces() -> u32 { return 2u * RECURRENT * units() * pieces() + (GATES * units() + 3u) / 4u; }
