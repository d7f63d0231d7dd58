// d_r and d_b in parts: each part sums over `part_tokens` tokens, and `reduce` adds the parts in their order.

// dg of a gate, rounded to T.
fn load_dg(token: u32, gate: u32, place: u32) -> f32 {
    if gate < INNER { return work_f32(params.inner_at + (token * INNER + gate) * units() + place); }
    return load_d_wx((token * EXTERNAL + gate - INNER) * units() + place);
}

// dg of 4 units of a token, and h before it: 0 beyond the head and the part.
fn four_dg(token: u32, end: u32, gate: u32, place: u32, unit: u32) -> vec4f {
    var dg = vec4f();
    if token >= end { return dg; }
    for (var j = 0u; j < 4u; j++) {
        if unit + j < params.head_dim { dg[j] = load_dg(token, gate, place + unit + j); }
    }
    return dg;
}

fn four_h(token: u32, end: u32, place: u32, unit: u32) -> vec4f {
    var h = vec4f();
    if token >= end { return h; }
    let previous = previous_of(token);
    for (var j = 0u; j < 4u; j++) {
        if unit + j < params.head_dim { h[j] = previous_h(previous, place + unit + j); }
    }
    return h;
}

// 16 tokens by 64 units, in fours.
var<workgroup> tile_dg: array<vec4f, 256>;
var<workgroup> tile_h: array<vec4f, 256>;

// partial [parts, Gr, N, D_out, D_in]: sums of dg h. A workgroup has 64 x 64 (out, in) of one gate, head and part, an invocation
// 4 x 4. In a round it brings 4 units of one token of each to workgroup memory, asked for a round ahead.
@compute @workgroup_size(16, 16)
fn weight_gradient(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_id) local: vec3u,
                   @builtin(local_invocation_index) thread: u32) {
    let tiles = (params.head_dim + 63u) / 64u;
    let group = group_index(id);
    let in0 = group % tiles * 64u;
    let out0 = group / tiles % tiles * 64u;
    let matrix = group / tiles / tiles;  // (part * Gr + gate) * N + head
    let head = matrix % params.heads;
    let gate = matrix / params.heads % RECURRENT;
    let part = matrix / params.heads / RECURRENT;
    if part >= params.parts { return; }
    let first = part * params.part_tokens;
    let end = min(first + params.part_tokens, tokens());
    let place = head * params.head_dim;

    var sum: array<vec4f, 4>;
    var dg = four_dg(first + local.y, end, gate, place, out0 + local.x * 4u);
    var h = four_h(first + local.y, end, place, in0 + local.x * 4u);
    for (var token0 = first; token0 < end; token0 += 16u) {
        workgroupBarrier();
        tile_dg[thread] = dg;
        tile_h[thread] = h;
        workgroupBarrier();
        dg = four_dg(token0 + 16u + local.y, end, gate, place, out0 + local.x * 4u);
        h = four_h(token0 + 16u + local.y, end, place, in0 + local.x * 4u);
        for (var k = 0u; k < 16u; k++) {
            let outs = tile_dg[k * 16u + local.y];
            let ins = tile_h[k * 16u + local.x];
            sum[0] += outs.x * ins;
            sum[1] += outs.y * ins;
            sum[2] += outs.z * ins;
            sum[3] += outs.w * ins;
        }
    }
    for (var i = 0u; i < 4u; i++) {
        let out = out0 + local.y * 4u + i;
        for (var j = 0u; j < 4u; j++) {
            let in = in0 + local.x * 4u + j;
            if out < params.head_dim && in < params.head_dim {
                partial[(matrix * params.head_dim + out) * params.head_dim + in] = sum[i][j];
            }
        }
    }
}

// partial [parts, G, N, D]: sums of dg. An invocation has one column of one part.
@compute @workgroup_size(64)
fn bias_gradient(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) thread: u32) {
    let i = group_index(id) * 64u + thread;
    let part = i / (GATES * units());
    if part >= params.parts { return; }
    let gate = i / units() % GATES;
    let end = min((part + 1u) * params.part_tokens, tokens());
    var sum = 0.0f;
    for (var token = part * params.part_tokens; token < end; token++) { sum += load_dg(token, gate, i % units()); }
    partial[i] = sum;
}
