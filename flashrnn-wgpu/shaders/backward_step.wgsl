// One step of the backward pass, one dispatch: from dg of the step after, the gradient that reaches h through R (a product with
// R transposed), then the cell's derivative as its epilogue, which gives this step's dg. One more step, -1, gives d_s0.
//
// Workgroups are as in forward_step.wgsl, with k over a head's units for one recurrent gate after another. From step to step
// go, in `work`, dg rounded to T at `exchange_at`, [2, B, Gr, N, D] in turn, and the gradient of the f32 states at `carried_at`,
// [S, B, N, D] in place.

var<workgroup> tile_r: array<f32, 16u * (CHUNK + 1u)>;
var<workgroup> tile_dg: array<f32, 16u * (CHUNK + 1u)>;

@compute @workgroup_size(16, 16)
fn backward_step(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_id) local: vec3u,
                 @builtin(local_invocation_index) thread: u32) {
    let unit_groups = (params.head_dim + 15u) / 16u;
    let group = group_index(id);
    let row0 = group / unit_groups / params.heads * 16u;
    if row0 >= params.batch { return; }
    let head = group / unit_groups % params.heads;
    let unit0 = group % unit_groups * 16u;
    let round = params.first_step + at_step.index;
    let before_first = round == params.time;  // step -1
    let step = params.time - 1u - round;      // of no meaning there
    let half = params.batch * RECURRENT * units();
    let after = params.exchange_at + round % 2u * half;
    let here = params.exchange_at + (round + 1u) % 2u * half;

    var sum = 0.0f;
    for (var gate = 0u; gate < RECURRENT; gate++) {
        for (var k0 = 0u; k0 < params.head_dim; k0 += CHUNK) {
            workgroupBarrier();
            for (var i = thread; i < 16u * CHUNK; i += 256u) {
                // R's rows are read along the units, dg's along k.
                let unit = unit0 + i % 16u;
                let k_of_r = k0 + i / 16u;
                var weight = 0.0f;
                if unit < params.head_dim && k_of_r < params.head_dim {
                    weight = weights[((gate * params.heads + head) * params.head_dim + k_of_r) * params.head_dim + unit];
                }
                tile_r[i % 16u * (CHUNK + 1u) + i / 16u] = weight;
                let row = row0 + i / CHUNK;
                let k = k0 + i % CHUNK;
                var value = 0.0f;
                if row < params.batch && k < params.head_dim {
                    value = work_f32(after + ((row * RECURRENT + gate) * params.heads + head) * params.head_dim + k);
                }
                tile_dg[i / CHUNK * (CHUNK + 1u) + i % CHUNK] = value;
            }
            workgroupBarrier();
            for (var k = 0u; k < CHUNK; k++) {
                sum += tile_r[local.x * (CHUNK + 1u) + k] * tile_dg[local.y * (CHUNK + 1u) + k];
            }
        }
    }

    let row = row0 + local.y;
    let unit = unit0 + local.x;
    if row >= params.batch || unit >= params.head_dim { return; }
    let place = head * params.head_dim + unit;
    let length = length_of(row);
    let stride = tokens() * units();
    // No gradient comes from the step after where this is the row's last, or a reset lies between.
    let last = select(step + 1u == length, length == 0u, before_first);
    let next_step = select(step + 1u, 0u, before_first);
    let next_reset = is_reset(row, length, next_step);
    let goes_on = !before_first && step < length;

    var d: array<f32, STATES>;
    for (var s = 0u; s < STATES; s++) {
        if last && params.has_d_last != 0u { d[s] = work_f32(params.d_last_at + state_at(s, row, place)); }
        if goes_on && s < params.d_states_count {
            d[s] += load_d_states(s * stride + step_token(row, length, step) * units() + place);
        }
        if !last && !next_reset { d[s] += work_f32(params.carried_at + state_at(s, row, place)); }
    }
    if !last && !next_reset && params.cut_recurrent_grad == 0u {
        if params.clips_gradient != 0u { sum = real_clamp(sum, params.recurrent_grad_clip); }
        d[0] += sum;
    }
    if before_first {
        for (var s = 0u; s < STATES; s++) {
            let none = ((CONSTANT >> s) & 1u) != 0u || next_reset;
            work[params.d_s0_at + state_at(s, row, place)] = select(bitcast<u32>(d[s]), 0u, none);
        }
        return;
    }

    let token = step_token(row, length, step);
    var result: CellGradients;
    if goes_on {
        var gates: array<f32, GATES>;
        var states: array<f32, STATES>;
        let gates_row = select(token, (step - params.gates_step) * params.batch + row, RECOMPUTED);
        for (var gate = 0u; gate < GATES; gate++) {
            if !RECOMPUTED && kept_wide(WIDE_GATES, gate) {
                gates[gate] = load_wide((countOneBits(WIDE) + rank(WIDE_GATES, gate)) * stride + token * units() + place);
            } else {
                gates[gate] = load_gates((gates_row * GATES + gate) * units() + place);
            }
        }
        if !is_reset(row, length, step) {
            for (var s = 0u; s < STATES; s++) {
                if step == 0u {
                    if params.has_s0 != 0u { states[s] = work_f32(params.s0_at + state_at(s, row, place)); }
                } else {
                    let previous = step_token(row, length, step - 1u) * units() + place;
                    if kept_wide(WIDE, s) {
                        states[s] = load_wide(rank(WIDE, s) * stride + previous);
                    } else {
                        states[s] = load_states(s * stride + previous);
                    }
                }
            }
        }
        if params.clips_forward != 0u {
            let next = cell_forward(states, gates);
            if abs(next[0]) > params.forward_clip { d[0] = 0.0f; }
        }
        result = cell_backward(states, gates, d);
        for (var gate = 0u; gate < RECURRENT; gate++) {
            let at = ((row * RECURRENT + gate) * params.heads + head) * params.head_dim + unit;
            work[here + at] = bitcast<u32>(rounded(result.dg[gate]));
        }
        for (var s = 0u; s < STATES; s++) {
            work[params.carried_at + state_at(s, row, place)] = bitcast<u32>(result.ds[s]);
        }
    }
    for (var gate = 0u; gate < GATES; gate++) {
        if gate < INNER {
            work[params.inner_at + (token * INNER + gate) * units() + place] = bitcast<u32>(rounded(result.dg[gate]));
        } else {
            store_d_wx((token * EXTERNAL + gate - INNER) * units() + place, result.dg[gate]);
        }
    }
}
