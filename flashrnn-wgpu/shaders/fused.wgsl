// What the fused kernels share: which thread does what.
//
// A workgroup has one head and ROWS rows of the batch, and runs up to STEPS steps of them. A head's D units are padded to UNITS with
// zeros. Its UNITS * SPLIT threads
// - multiply: each holds lines of R in registers, DEPTH of k of each,
// - compute the cell: the first UNITS * ROWS of them, a unit of a row each,
// - carry tensors in and out: two neighbouring units of a row each, the rows of TURNS tensors at a time.

const DEPTH = UNITS / SPLIT;
const PAIRS = UNITS / 2u;
const TURNS = 2u * SPLIT / ROWS;
// Places between parts of k, so that they begin in different banks.
const BETWEEN = 4u;

// A unit of a row, the first of two.
struct Role {
    line: u32,  // which of the workgroup's rows
    row: u32,
    unit: u32,
    place: u32,  // in [N, D]
    length: u32,
    exists: bool,
    both: bool,  // the second unit exists too
}

fn role_of(line: u32, unit: u32, head: u32, row0: u32) -> Role {
    let row = row0 + line;
    let exists = line < ROWS && row < params.batch && unit < params.head_dim;
    var length = 0u;
    if exists { length = length_of(row); }
    return Role(line, row, unit, head * params.head_dim + unit, length, exists, exists && unit + 1u < params.head_dim);
}

// R of a head, 0 beyond its units.
fn weight(gate: u32, head: u32, unit: u32, k: u32) -> f32 {
    let value = weights[line_of_r(gate, head, unit) + k / 4u][k % 4u];
    return select(0.0f, value, unit < params.head_dim && k < params.head_dim);
}
