// What the fused kernels share: which thread does what.
//
// A workgroup has one head and ROWS rows of the batch, and runs up to STEPS steps of them. A head's D units are padded to UNITS with
// zeros. Of its UNITS * SPLIT threads, each holds in registers some lines of R, DEPTH of k of each: its part of the product.
// For all else the threads are lines of PAIRS: a thread has two neighbouring units of one row, `turn` being how many such lines
// come before it. Turn 0 computes the cell. All of them carry tensors in and out, a tensor a turn, TURNS at a time.

const DEPTH = UNITS / SPLIT;
const HALF = DEPTH / 2u;
const PAIRS = UNITS / 2u;
const TURNS = 2u * SPLIT / ROWS;

struct Role {
    pair: u32,   // of units
    line: u32,   // which of the workgroup's rows
    turn: u32,
    row: u32,
    place: u32,  // of the first unit in [N, D]
    length: u32,
    exists: bool,
    both: bool,  // the second unit exists too
}

fn role_of(thread: u32, head: u32, row0: u32) -> Role {
    var role: Role;
    role.pair = thread % PAIRS;
    role.line = thread / PAIRS % ROWS;
    role.turn = thread / PAIRS / ROWS;
    role.row = row0 + role.line;
    let unit = 2u * role.pair;
    role.place = head * params.head_dim + unit;
    role.exists = role.row < params.batch && unit < params.head_dim;
    role.both = role.exists && unit + 1u < params.head_dim;
    if role.exists { role.length = length_of(role.row); }
    return role;
}

// R of a head, 0 beyond its units.
fn weight(gate: u32, head: u32, unit: u32, k: u32) -> f32 {
    let value = weights[line_of_r(gate, head, unit) + k / 4u][k % 4u];
    return select(0.0f, value, unit < params.head_dim && k < params.head_dim);
}
