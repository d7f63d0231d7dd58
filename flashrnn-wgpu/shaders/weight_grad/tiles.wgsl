// Computes d_r and d_b in parts. A part is the sum over `part_tokens` tokens; reduce.wgsl adds the
// parts in order.

// dg of a gate, rounded to T.
fn load_dg(token: u32, gate: u32, place: u32) -> f32 {
    if gate < INNER { return work_f32(params.inner_at + (token * INNER + gate) * units() + place); }
    return load_d_wx((token * EXTERNAL + gate - INNER) * units() + place);
}

// Two units, `unit` and the next one; 0 beyond the head.
fn in_head(bits: vec2u, unit: u32) -> vec2f {
    let two = widen2(bits);
    return select(vec2f(two.x, 0.0f), two, unit + 1u < params.head_dim);
}

fn store_partial(matrix: u32, out: u32, in: u32, sum: f32) {
    if out < params.head_dim && in < params.head_dim {
        partial[(matrix * params.head_dim + out) * params.head_dim + in] = sum;
    }
}

// Tokens per round.
const ROUND = 16u / FOURS;
// Groups of four units per token.
const FOURS_PER_TOKEN = 16u * FOURS;

// Two rounds: one is read while the next is written.
var<workgroup> tile_dg: array<vec4f, 512>;
var<workgroup> tile_h: array<vec4f, 512>;

// partial [parts, Gr, N, D_out, D_in]: sums of dg h. A workgroup computes a tile of (64 FOURS)^2
// (out, in) of one gate, head and part; an invocation computes FOURS^2 blocks of 4 x 4 of it, 64
// apart. In a round, an invocation moves 4 units of dg and of h of one token to workgroup memory.
// The units are loaded a round ahead and converted late, because a conversion waits for the load.
@compute @workgroup_size(16, 16)
fn weight_grad(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_id) local: vec3u,
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
    let line = thread / FOURS_PER_TOKEN;
    let out = out0 + thread % FOURS_PER_TOKEN * 4u;
    let in = in0 + thread % FOURS_PER_TOKEN * 4u;

    //@ for $a in 0..FOURS
    //@ for $b in 0..FOURS
    //@ for $i in 0..4
    var sum$a$b$i = vec4f();
    //@ end
    //@ end
    //@ end
    //@ for $j in 0..2
    var dg$j = vec2u();
    var h$j = vec2u();
    //@ end
    var now = 0u;
    // The first round only loads.
    for (var token0 = first; token0 < end + ROUND; token0 += ROUND) {
        //@ for $j in 0..2
        let two_dg$j = in_head(dg$j, out + 2u * $ju);
        let two_h$j = in_head(h$j, in + 2u * $ju);
        dg$j = vec2u();
        h$j = vec2u();
        //@ end
        tile_dg[now + thread] = vec4f(two_dg0, two_dg1);
        tile_h[now + thread] = vec4f(two_h0, two_h1);
        workgroupBarrier();
        let token = token0 + line;
        if token < end {
            let previous = previous_of(token);
            //@ for $j in 0..2
            if out + 2u * $ju < params.head_dim {
                dg$j = dg_bits(token, gate, place + out + 2u * $ju);
            }
            if in + 2u * $ju < params.head_dim { h$j = h_bits(previous, place + in + 2u * $ju); }
            //@ end
        }
        for (var k0 = 0u; k0 < ROUND; k0 += AT_ONCE) {
            //@ for $k in 0..AT_ONCE
            {
                //@ for $a in 0..FOURS
                let outs$a = tile_dg[now + (k0 + $ku) * FOURS_PER_TOKEN + $au * 16u + local.y];
                let ins$a = tile_h[now + (k0 + $ku) * FOURS_PER_TOKEN + $au * 16u + local.x];
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
        now = 256u - now;
    }
    //@ for $a in 0..FOURS
    //@ for $b in 0..FOURS
    //@ for $i in 0..4
    //@ for $j in 0..4
    store_partial(matrix, out0 + ($au * 16u + local.y) * 4u + $iu,
        in0 + ($bu * 16u + local.x) * 4u + $ju, sum$a$b$i[$j]);
    //@ end
    //@ end
    //@ end
    //@ end
}

// partial [parts, G, N, D]: sums of dg. Each invocation computes one column of one part.
@compute @workgroup_size(64)
fn bias_grad(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) thread: u32) {
    let i = group_index(id) * 64u + thread;
    let part = i / (GATES * units());
    if part >= params.parts { return; }
    let gate = i / units() % GATES;
    let end = min((part + 1u) * params.part_tokens, tokens());
    var sum = 0.0f;
    var token = part * params.part_tokens;
    for (; token + 8u <= end; token += 8u) {
        //@ for $k in 0..8
        let dg$k = load_dg(token + $ku, gate, i % units());
        //@ end
        //@ for $k in 0..8
        sum += dg$k;
        //@ end
    }
    for (; token < end; token++) { sum += load_dg(token, gate, i % units()); }
    partial[i] = sum;
}
