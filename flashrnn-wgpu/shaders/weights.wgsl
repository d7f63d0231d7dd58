// The packed weights, f32, in pieces of 4 along k; the last piece of a line is padded with zeros:
//
// - R [Gr, N, D_out, pieces of D_in], rounded to T
// - R transposed [N, D_in, Gr, pieces of D_out]
// - b [G, N, D], padded as a whole
// - for fused kernels, R once more in T (pack/fused.wgsl)

// The number of pieces of a line.
fn pieces() -> u32 { return (params.head_dim + 3u) / 4u; }

// The index of the first piece of R's row for this gate and unit.
fn line_of_r(gate: u32, head: u32, unit: u32) -> u32 {
    return ((gate * params.heads + head) * params.head_dim + unit) * pieces();
}

// The index of the first piece of the row of transposed R for this unit. The row holds the pieces
// of one recurrent gate after another.
fn line_of_transposed(head: u32, unit: u32) -> u32 {
    return (RECURRENT * units() + (head * params.head_dim + unit) * RECURRENT) * pieces();
}

// Loads b for a gate and a unit in [N, D].
fn bias(gate: u32, place: u32) -> f32 {
    let i = gate * units() + place;
    return bitcast<f32>(weights[2u * RECURRENT * units() * pieces() + i / 4u][i % 4u]);
}

// The number of pieces before those of the fused kernels.
fn step_pieces() -> u32 {
    return 2u * RECURRENT * units() * pieces() + (GATES * units() + 3u) / 4u;
}
