// Maps the steps of each row to positions in memory.
//
//     g_t = R s0_{t-1} + x_t + b            s_t = P(s_{t-1}, g_t)
//
// A *step* is counted in processing order. A *position* is the index in time that a step reads and
// writes. A *token* is the index of a row's position among the B * T of the caller's layout.

// Number of gates that take no external input; they come first.
const INNER = GATES - EXTERNAL;

fn token_of(row: u32, position: u32) -> u32 {
    return select(row * params.time + position, position * params.batch + row,
        params.time_major != 0u);
}

fn work_f32(i: u32) -> f32 { return bitcast<f32>(work[i]); }

// Two adjacent words of `work`.
fn load2_work(at: u32) -> vec2f { return vec2f(work_f32(at), work_f32(at + 1u)); }
fn store2_work(at: u32, x: vec2f, both: bool) {
    work[at] = bitcast<u32>(x.x);
    if both { work[at + 1u] = bitcast<u32>(x.y); }
}

// The number of steps of a row.
fn length_of(row: u32) -> u32 {
    if params.has_lengths == 0u { return params.time; }
    return u32(clamp(bitcast<i32>(work[params.lengths_at + row]), 0i, i32(params.time)));
}

// The token of a step; meaningless if the step is not below T.
fn step_token(row: u32, length: u32, step: u32) -> u32 {
    return token_of(row, select(step, length - 1u - step, params.reverse != 0u && step < length));
}

// Whether the state is reset before this step.
fn is_reset(row: u32, length: u32, step: u32) -> bool {
    if params.has_resets == 0u || step >= length { return false; }
    let token = step_token(row, length, step);
    return ((work[params.resets_at + token / 4u] >> (token % 4u * 8u)) & 0xffu) != 0u;
}

// The number of bits of `bits` below bit k.
fn rank(bits: u32, k: u32) -> u32 { return countOneBits(bits & ((1u << k) - 1u)); }

// Whether state or gate k is also stored in f32, in addition to 16-bit tensors.
fn kept_wide(bits: u32, k: u32) -> bool { return NARROW && ((bits >> k) & 1u) != 0u; }

// The index of a state of a row in a tensor [S, B, N, D].
fn state_index(s: u32, row: u32, place: u32) -> u32 {
    return (s * params.batch + row) * units() + place;
}
