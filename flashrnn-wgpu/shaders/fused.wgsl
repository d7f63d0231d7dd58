// What the fused kernels share: which thread does what, and the weights.
//
// A workgroup has one head and ROWS rows of the batch, and runs up to STEPS steps of them. A head's
// D units are padded to UNITS with zeros. Its UNITS * SPLIT threads
// - multiply: MULTIPLIERS of them have LINES lines of R each, DEPTH of k of each, in CHUNKS chunks
//   of OF_CHUNK along k: the first KEPT in registers, and the STREAMED others are read again at
//   every step (fused_product.wgsl),
// - compute the cell: the first UNITS * ROWS of them, a unit of a row each,
// - carry tensors in and out: two neighbouring units of a row each, the rows of TURNS tensors at a
//   time.

const DEPTH = UNITS / SPLIT;
const OF_CHUNK = DEPTH / CHUNKS;
const PAIRS = UNITS / 2u;
const TURNS = 2u * SPLIT / ROWS;
// Places between chunks, so that parts of k begin in different banks.
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

// What the lines multiply, h or dg, rounded to T and as f32: OPERANDS of them, each by part of k,
// row and chunk.
var<workgroup> x_now: array<array<f32, OF_CHUNK + BETWEEN>, OPERANDS * SPLIT * ROWS * CHUNKS>;

fn chunk_of(operand: u32, line: u32, unit: u32) -> u32 {
    return ((operand * SPLIT + unit / DEPTH) * ROWS + line) * CHUNKS + unit % DEPTH / OF_CHUNK;
}
fn set_x(operand: u32, line: u32, unit: u32, x: f32) { x_now[chunk_of(operand, line, unit)][unit % OF_CHUNK] = x; }
fn get_x(operand: u32, line: u32, unit: u32) -> f32 { return x_now[chunk_of(operand, line, unit)][unit % OF_CHUNK]; }

// Where the pieces of R of the kernels of the two passes begin.
fn forward_pieces() -> u32 { return plain_pieces(); }
fn backward_pieces() -> u32 { return plain_pieces() + params.heads * PIECES_OF_HEAD; }

// A piece of a thread's line of R: `first` is the thread's first one.
fn piece_at(first: u32, chunk: u32, group: u32, line: u32) -> vec4u {
    return weights[first + ((chunk * GROUPS + group) * LINES + line) * MULTIPLIERS];
}
