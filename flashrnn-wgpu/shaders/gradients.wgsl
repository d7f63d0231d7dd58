// d_r and d_b in parts: each part sums over `part_tokens` tokens, and `reduce` adds the parts in their order.

// dg of a gate, rounded to T.
fn load_dg(token: u32, gate: u32, place: u32) -> f32 {
    if gate < INNER { return work_f32(params.inner_at + (token * INNER + gate) * units() + place); }
    return load_d_wx((token * EXTERNAL + gate - INNER) * units() + place);
}

// dg of 2 and of 4 units of a token, and h before it: 0 beyond the head and the part.
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

// 16 tokens by 64 FOURS units, in fours.
var<workgroup> tile_dg: array<vec4f, 256u * FOURS>;
var<workgroup> tile_h: array<vec4f, 256u * FOURS>;

// partial [parts, Gr, N, D_out, D_in]: sums of dg h. A workgroup has (64 FOURS)^2 (out, in) of one gate, head and part, an invocation
// FOURS^2 times 4 x 4, 64 apart. In a round it brings FOURS times 4 units of one token of each to workgroup memory, asked for a round
// ahead.
@compute @workgroup_size(16, 16)
fn weight_gradient(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_id) local: vec3u,
                   @builtin(local_invocation_index) thread: u32) {
    let tiles = (params.head_dim + 64u * FOURS - 1u) / (64u * FOURS);
    let group = group_index(id);
    let in0 = group % tiles * 64u * FOURS;
    let out0 = group / tiles % tiles * 64u * FOURS;
    let matrix = group / tiles / tiles;  // (part * Gr + gate) * N + head
    let head = matrix % params.heads;
    let gate = matrix / params.heads % RECURRENT;
    let part = matrix / params.heads / RECURRENT;
    if part >= params.parts { return; }
    let first = part * params.part_tokens;
    let end = min(first + params.part_tokens, tokens());
    let place = head * params.head_dim;

    //@ for $a in 0..FOURS
    //@ for $b in 0..FOURS
    //@ for $i in 0..4
    var sum$a$b$i = vec4f();
    //@ end
    //@ end
    var dg$a = four_dg(first + local.y, end, gate, place, out0 + ($au * 16u + local.x) * 4u);
    var h$a = four_h(first + local.y, end, place, in0 + ($au * 16u + local.x) * 4u);
    //@ end
    for (var token0 = first; token0 < end; token0 += 16u) {
        workgroupBarrier();
        //@ for $a in 0..FOURS
        tile_dg[$au * 256u + thread] = dg$a;
        tile_h[$au * 256u + thread] = h$a;
        //@ end
        workgroupBarrier();
        //@ for $a in 0..FOURS
        dg$a = four_dg(token0 + 16u + local.y, end, gate, place, out0 + ($au * 16u + local.x) * 4u);
        h$a = four_h(token0 + 16u + local.y, end, place, in0 + ($au * 16u + local.x) * 4u);
        //@ end
        for (var k0 = 0u; k0 < 16u; k0 += AT_ONCE) {
            //@ for $k in 0..AT_ONCE
            {
                //@ for $a in 0..FOURS
                let outs$a = tile_dg[$au * 256u + (k0 + $ku) * 16u + local.y];
                let ins$a = tile_h[$au * 256u + (k0 + $ku) * 16u + local.x];
                //@ end
                //@ for $a in 0..FOURS
                //@ for $b in 0..FOURS
                //@ for $i in 0..4
                sum$a$b$i += outs$a[$i] * ins$b;
                //@ end
                //@ end
                //@ end
            }
            //@ end
        }
    }
    //@ for $a in 0..FOURS
    //@ for $b in 0..FOURS
    //@ for $i in 0..4
    //@ for $j in 0..4
    put_partial(matrix, out0 + ($au * 16u + local.y) * 4u + $iu, in0 + ($bu * 16u + local.x) * 4u + $ju, sum$a$b$i[$j]);
    //@ end
    //@ end
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
