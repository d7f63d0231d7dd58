// Where each step of each row lies in memory.
//
//     g_t = R s0_{t-1} + x_t + b            s_t = P(s_{t-1}, g_t)
//
// A *step* counts in processing order, a *position* is the place in time that it reads and writes;
// a *token* is a position of a row among the B*T of the caller's layout.

// The gates that take no external input come first.
const INNER = GATES - EXTERNAL;

fn token_of(row: u32, position: u32) -> u32 {
    return select(row * params.time + position, position * params.batch + row, params.time_major != 0u);
}

fn work_f32(i: u32) -> f32 { return bitcast<f32>(work[i]); }

// Two neighbours in `work`.
fn load2_work(at: u32) -> vec2f { return vec2f(work_f32(at), work_f32(at + 1u)); }
fn store2_work(at: u32, x: vec2f, both: bool) {
    work[at] = bitcast<u32>(x.x);
    if both { work[at + 1u] = bitcast<u32>(x.y); }
}

// How many steps a row has.
fn length_of(row: u32) -> u32 {
    if params.has_lengths == 0u { return params.time; }
    return u32(clamp(bitcast<i32>(work[params.lengths_at + row]), 0i, i32(params.time)));
}

// The token of a row's step, below T.
fn step_token(row: u32, length: u32, step: u32) -> u32 {
    return token_of(row, select(step, length - 1u - step, params.reverse != 0u && step < length));
}

// Whether the state is zeroed before this step.
fn is_reset(row: u32, length: u32, step: u32) -> bool {
    if params.has_resets == 0u || step >= length { return false; }
    let token = step_token(row, length, step);
    return ((work[params.resets_at + token / 4u] >> (token % 4u * 8u)) & 0xffu) != 0u;
}

// How many bits of `bits` lie below bit k.
fn rank(bits: u32, k: u32) -> u32 { return countOneBits(bits & ((1u << k) - 1u)); }

// Whether a state or a gate is kept in f32 beside the 16-bit tensors.
fn kept_wide(bits: u32, k: u32) -> bool { return NARROW && ((bits >> k) & 1u) != 0u; }

// Where a tensor [S, B, N, D] of the row's states has this state.
fn state_index(s: u32, row: u32, place: u32) -> u32 { return (s * params.batch + row) * units() + place; }
