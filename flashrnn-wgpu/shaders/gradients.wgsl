// d_r and d_b in parts: each part sums over `part_tokens` tokens, and `reduce` adds the parts in their order.

// dg of a gate, rounded to T.
fn load_dg(token: u32, gate: u32, place: u32) -> f32 {
    if gate < INNER { return work_f32(params.inner_at + (token * INNER + gate) * units() + place); }
    return load_d_wx((token * EXTERNAL + gate - INNER) * units() + place);
}

// dg of 4 units of a token, and h before it: 0 beyond the head and the part.
fn two_dg(token: u32, gate: u32, place: u32, unit: u32) -> vec2f {
    if unit >= params.head_dim { return vec2f(); }
    var dg: vec2f;
    if gate < INNER {
        dg = load2_work(params.inner_at + (token * INNER + gate) * units() + place + unit);
    } else {
        dg = load2_d_wx((token * EXTERNAL + gate - INNER) * units() + place + unit);
    }
    return select(vec2f(dg.x, 0.0f), dg, unit + 1u < params.head_dim);
}

fn four_dg(token: u32, end: u32, gate: u32, place: u32, unit: u32) -> vec4f {
    if token >= end { return vec4f(); }
    return vec4f(two_dg(token, gate, place, unit), two_dg(token, gate, place, unit + 2u));
}

fn two_h(previous: Previous, place: u32, unit: u32) -> vec2f {
    if unit >= params.head_dim { return vec2f(); }
    let h = previous_h2(previous, place + unit);
    return select(vec2f(h.x, 0.0f), h, unit + 1u < params.head_dim);
}

fn four_h(token: u32, end: u32, place: u32, unit: u32) -> vec4f {
    if token >= end { return vec4f(); }
    let previous = previous_of(token);
    return vec4f(two_h(previous, place, unit), two_h(previous, place, unit + 2u));
}

fn put_partial(matrix: u32, out: u32, in: u32, sum: f32) {
    if out < params.head_dim && in < params.head_dim { partial[(matrix * params.head_dim + out) * params.head_dim + in] = sum; }
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

    //@ for $i in 0..4
    var sum$i = vec4f();
    //@ end
    var dg = four_dg(first + local.y, end, gate, place, out0 + local.x * 4u);
    var h = four_h(first + local.y, end, place, in0 + local.x * 4u);
    for (var token0 = first; token0 < end; token0 += 16u) {
        workgroupBarrier();
        tile_dg[thread] = dg;
        tile_h[thread] = h;
        workgroupBarrier();
        dg = four_dg(token0 + 16u + local.y, end, gate, place, out0 + local.x * 4u);
        h = four_h(token0 + 16u + local.y, end, place, in0 + local.x * 4u);
        //@ for $k in 0..16
        let outs$k = tile_dg[$ku * 16u + local.y];
        let ins$k = tile_h[$ku * 16u + local.x];
        sum0 += outs$k.x * ins$k;
        sum1 += outs$k.y * ins$k;
        sum2 += outs$k.z * ins$k;
        sum3 += outs$k.w * ins$k;
        //@ end
    }
    //@ for $i in 0..4
    //@ for $j in 0..4
    put_partial(matrix, out0 + local.y * 4u + $iu, in0 + local.x * 4u + $ju, sum$i[$j]);
    //@ end
    //@ end
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
