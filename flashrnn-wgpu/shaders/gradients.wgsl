// d_r and d_b in parts: each part sums over `part_tokens` tokens, and `reduce` adds the parts in their order.

// dg of a gate, rounded to T.
fn load_dg(token: u32, gate: u32, place: u32) -> f32 {
    if gate < INNER { return work_f32(params.inner_at + (token * INNER + gate) * units() + place); }
    return load_d_wx((token * EXTERNAL + gate - INNER) * units() + place);
}

var<workgroup> tile_dg: array<f32, 16u * 17u>;
var<workgroup> tile_h: array<f32, 16u * 17u>;

// partial [parts, Gr, N, D_out, D_in]: sums of dg h. A workgroup has 16 x 16 (out, in) of one gate, head and part.
@compute @workgroup_size(16, 16)
fn weight_gradient(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_id) local: vec3u) {
    let tiles = (params.head_dim + 15u) / 16u;
    let group = group_index(id);
    let in0 = group % tiles * 16u;
    let out0 = group / tiles % tiles * 16u;
    let matrix = group / tiles / tiles;  // (part * Gr + gate) * N + head
    let head = matrix % params.heads;
    let gate = matrix / params.heads % RECURRENT;
    let part = matrix / params.heads / RECURRENT;
    if part >= params.parts { return; }
    let first = part * params.part_tokens;
    let end = min(first + params.part_tokens, tokens());
    let place = head * params.head_dim;

    var sum = 0.0f;
    for (var token0 = first; token0 < end; token0 += 16u) {
        workgroupBarrier();
        let token = token0 + local.y;
        var dg = 0.0f;
        var h = 0.0f;
        if token < end && out0 + local.x < params.head_dim { dg = load_dg(token, gate, place + out0 + local.x); }
        if token < end && in0 + local.x < params.head_dim { h = previous_h(token, place + in0 + local.x); }
        tile_dg[local.y * 17u + local.x] = dg;
        tile_h[local.y * 17u + local.x] = h;
        workgroupBarrier();
        for (var k = 0u; k < 16u; k++) { sum += tile_dg[k * 17u + local.y] * tile_h[k * 17u + local.x]; }
    }
    if out0 + local.y < params.head_dim && in0 + local.x < params.head_dim {
        partial[(matrix * params.head_dim + out0 + local.y) * params.head_dim + in0 + local.x] = sum;
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
