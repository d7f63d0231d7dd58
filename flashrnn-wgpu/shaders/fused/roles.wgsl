// The roles of a fused kernel's threads, and the weights.
//
// A workgroup computes up to STEPS steps of one head, for ROWS rows of the batch. A head's D units
// are padded to UNITS with zeros. Each of the UNITS * SPLIT threads has up to three roles:
//
// - Multiply: MULTIPLIERS threads multiply LINES lines of R each, DEPTH numbers along k of each
//   line, in CHUNKS chunks of CHUNK_DEPTH. The first RESIDENT chunks stay in registers; the other
//   STREAMED ones are re-read at every step (product.wgsl).
// - Compute the cell: the first UNITS * ROWS threads, one unit of one row each.
// - Load and store tensors: all threads, two adjacent units of a row each, IO_TENSORS tensors at a
//   time.

const DEPTH = UNITS / SPLIT;
const CHUNK_DEPTH = DEPTH / CHUNKS;
const PAIRS = UNITS / 2u;
const IO_TENSORS = 2u * SPLIT / ROWS;
// Padding between chunks, so that parts of k begin in different banks.
const CHUNK_PAD = 4u;

// The unit of a row that a thread works on, or the first of two.
struct Role {
    line: u32,  // index of the row in the workgroup
    row: u32,
    unit: u32,
    place: u32,  // index in [N, D]
    length: u32,
    exists: bool,
    both: bool,  // whether the second unit exists
}

fn role_of(line: u32, unit: u32, head: u32, row0: u32) -> Role {
    let row = row0 + line;
    let exists = line < ROWS && row < params.batch && unit < params.head_dim;
    var length = 0u;
    if exists { length = length_of(row); }
    return Role(line, row, unit, head * params.head_dim + unit, length, exists,
        exists && unit + 1u < params.head_dim);
}

// The OPERANDS vectors that the lines are multiplied by (h or dg), rounded to T and stored as f32.
// They are indexed by part of k, row and chunk.
var<workgroup> x_now: array<array<f32, CHUNK_DEPTH + CHUNK_PAD>, OPERANDS * SPLIT * ROWS * CHUNKS>;

fn chunk_of(operand: u32, line: u32, unit: u32) -> u32 {
    return ((operand * SPLIT + unit / DEPTH) * ROWS + line) * CHUNKS + unit % DEPTH / CHUNK_DEPTH;
}
fn set_x(operand: u32, line: u32, unit: u32, x: f32) {
    x_now[chunk_of(operand, line, unit)][unit % CHUNK_DEPTH] = x;
}
fn get_x(operand: u32, line: u32, unit: u32) -> f32 {
    return x_now[chunk_of(operand, line, unit)][unit % CHUNK_DEPTH];
}

// The index of the first piece of R for each pass's kernel.
fn forward_pieces() -> u32 { return step_pieces(); }
fn backward_pieces() -> u32 { return step_pieces() + params.heads * PIECES_PER_HEAD; }

// A piece of a thread's line of R; `first` is the first piece of the thread.
fn piece_at(first: u32, chunk: u32, group: u32, line: u32) -> vec4u {
    return weights[first + ((chunk * GROUPS + group) * LINES + line) * MULTIPLIERS];
}
