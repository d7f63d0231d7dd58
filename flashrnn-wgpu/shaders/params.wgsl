// What every kernel is called with.

// `Params` of call.rs.
struct Params {
    batch: u32, time: u32, heads: u32, head_dim: u32,
    time_major: u32, reverse: u32,
    first_step: u32, end_step: u32,  // of the backward pass, counted from the last one
    has_lengths: u32, has_resets: u32, has_s0: u32, has_d_last: u32,
    has_h: u32, has_states: u32, saves_gates: u32, saves_wide: u32,
    d_states_count: u32,  // how many states d_states holds: 0, 1 (d_h alone) or S
    clips_forward: u32, clips_gradient: u32, cut_recurrent_grad: u32,
    forward_clip: f32, recurrent_grad_clip: f32,
    parts: u32, part_tokens: u32, accumulate: u32,
    row_length: u32,  // of `reduce`
    // Of the gates computed again: which step is the first, and how many there are.
    gates_step: u32, gates_steps: u32,
    // Where parts of `work` begin.
    lengths_at: u32, resets_at: u32, s0_at: u32, carried_at: u32, exchange_at: u32, inner_at: u32, d_last_at: u32, d_s0_at: u32,
    // Where tensors begin in their bindings, in elements.
    r_first: u32, b_first: u32, wx_first: u32, h_first: u32, states_first: u32, gates_first: u32, wide_first: u32,
    d_states_first: u32, d_wx_first: u32, out_first: u32,
    zero: u32,  // for `opaque`
    pad: u32,
}

// Of the kernels of one step: how many steps after the first.
struct Step { index: u32, pad0: u32, pad1: u32, pad2: u32, }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> at_step: Step;

fn units() -> u32 { return params.heads * params.head_dim; }
fn tokens() -> u32 { return params.batch * params.time; }

// Of the many workgroups of a dispatch, which this is; there may be some too many.
fn group_index(id: vec3u) -> u32 { return id.x + id.y * GROUPS_X; }
