// One step of the forward pass, one dispatch: R h as a product, the cell as its epilogue.
//
// A workgroup of 16 x 16 invocations has 16 units of one head and 16 rows, an invocation one pair with all its gates. R and h
// come to workgroup memory in chunks of CHUNK along k: R as [Gr, 16 units, CHUNK + 1], h as [16 rows, CHUNK + 1].
// Groups: units innermost, then heads, then rows.
//
// What goes from step to step lies in `work` at `carried_at`: [2, S, B, N, D], of which a step reads one half and writes the
// other, for other workgroups read what this one would overwrite.

var<workgroup> tile_r: array<f32, RECURRENT * 16u * (CHUNK + 1u)>;
var<workgroup> tile_h: array<f32, 16u * (CHUNK + 1u)>;

@compute @workgroup_size(16, 16)
fn forward_step(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_id) local: vec3u,
                @builtin(local_invocation_index) thread: u32) {
    let unit_groups = (params.head_dim + 15u) / 16u;
    let group = group_index(id);
    let row0 = group / unit_groups / params.heads * 16u;
    if row0 >= params.batch { return; }
    let head = group / unit_groups % params.heads;
    let unit0 = group % unit_groups * 16u;
    let step = params.first_step + at_step.index;
    let half = STATES * params.batch * units();
    let before = params.carried_at + step % 2u * half;
    let after = params.carried_at + (step + 1u) % 2u * half;

    var sums: array<f32, RECURRENT>;
    for (var k0 = 0u; k0 < params.head_dim; k0 += CHUNK) {
        workgroupBarrier();
        for (var i = thread; i < 16u * CHUNK; i += 256u) {
            let k = k0 + i % CHUNK;
            let line = i / CHUNK;
            let row = row0 + line;
            let unit = unit0 + line;
            var value = 0.0f;
            if k < params.head_dim && row < params.batch {
                value = rounded(work_f32(before + state_at(0u, row, head * params.head_dim + k)));
            }
            tile_h[line * (CHUNK + 1u) + i % CHUNK] = value;
            for (var gate = 0u; gate < RECURRENT; gate++) {
                var weight = 0.0f;
                if k < params.head_dim && unit < params.head_dim {
                    weight = weights[((gate * params.heads + head) * params.head_dim + unit) * params.head_dim + k];
                }
                tile_r[(gate * 16u + line) * (CHUNK + 1u) + i % CHUNK] = weight;
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < CHUNK; k++) {
            let h = tile_h[local.y * (CHUNK + 1u) + k];
            for (var gate = 0u; gate < RECURRENT; gate++) {
                sums[gate] += tile_r[(gate * 16u + local.x) * (CHUNK + 1u) + k] * h;
            }
        }
    }

    let row = row0 + local.y;
    let unit = unit0 + local.x;
    if row >= params.batch || unit >= params.head_dim { return; }
    let place = head * params.head_dim + unit;
    let length = length_of(row);
    let token = step_token(row, length, step);
    let goes_on = step < length;
    let reset = is_reset(row, length, step);
    let written = token * units() + place;
    let stride = tokens() * units();

    var gates: array<f32, GATES>;
    var states: array<f32, STATES>;
    var next: array<f32, STATES>;
    if goes_on {
        for (var gate = 0u; gate < GATES; gate++) {
            gates[gate] = weights[params.b_first + gate * units() + place];
            if gate >= INNER { gates[gate] += load_wx((token * EXTERNAL + gate - INNER) * units() + place); }
            if gate < RECURRENT && !reset { gates[gate] += sums[gate]; }
        }
        for (var s = 0u; s < STATES; s++) {
            if !reset { states[s] = work_f32(before + state_at(s, row, place)); }
        }
        next = cell_forward(states, gates);
        if params.clips_forward != 0u { next[0] = real_clamp(next[0], params.forward_clip); }
    }
    for (var s = 0u; s < STATES; s++) {
        let at = state_at(s, row, place);
        work[after + at] = select(work[before + at], bitcast<u32>(next[s]), goes_on);
    }
    // Beyond a row's length the outputs are zeros.
    if params.has_h != 0u { store_h(written, next[0]); }
    for (var s = 0u; s < STATES; s++) {
        if params.has_states != 0u { store_states(s * stride + written, next[s]); }
        if params.saves_wide != 0u && kept_wide(WIDE, s) { store_wide(rank(WIDE, s) * stride + written, next[s]); }
    }
    if params.saves_gates != 0u {
        for (var gate = 0u; gate < GATES; gate++) {
            store_gates((token * GATES + gate) * units() + place, gates[gate]);
            if kept_wide(WIDE_GATES, gate) {
                store_wide((countOneBits(WIDE) + rank(WIDE_GATES, gate)) * stride + written, gates[gate]);
            }
        }
    }
}
