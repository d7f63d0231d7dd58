// Up to STEPS steps of the forward pass, one dispatch: R stays in registers, h in workgroup memory. Threads: fused.wgsl.
//
// A step has two phases, with a barrier before each:
//   1. all threads: their part of R h, of all gates of a unit; the outputs of the step before go to memory; wx of this step, which
//      was asked for a step ago, to workgroup memory; wx of the next is asked for.
//   2. those that compute: the sum of the parts, and the cell.
//
// The states are carried in `work` at `carried_at`, [S, B, N, D], from dispatch to dispatch in place.

// [SPLIT][ROWS, DEPTH]: h rounded to T, by part of k.
var<workgroup> h_now: array<array<f32, ROWS * DEPTH + BETWEEN>, SPLIT>;
var<workgroup> parts: array<array<array<array<f32, UNITS>, ROWS>, RECURRENT>, SPLIT>;
var<workgroup> inputs: array<array<array<f32, UNITS>, ROWS>, max(EXTERNAL, 1u)>;
var<workgroup> outputs: array<array<array<f32, UNITS>, ROWS>, STATES + GATES>;

// One of wx's gates at a step.
fn load_input(role: Role, gate: u32, step: u32) -> vec2f {
    if gate >= EXTERNAL || step >= role.length { return vec2f(); }
    let token = step_token(role.row, role.length, step);
    return load2_wx((token * EXTERNAL + gate) * units() + role.place);
}

// `outputs` of a step to memory.
fn store_outputs(role: Role, turn: u32, step: u32) {
    if !role.exists { return; }
    let token = step_token(role.row, role.length, step);
    let written = token * units() + role.place;
    let states = select(1u, STATES, params.has_states != 0u);
    let all = select(states, STATES + GATES, params.saves_gates != 0u);
    for (var i = turn; i < all; i += TURNS) {
        let value = vec2f(outputs[i][role.line][role.unit], outputs[i][role.line][role.unit + 1u]);
        if i >= STATES {
            store2_gates((token * GATES + i - STATES) * units() + role.place, value, role.both);
        } else {
            if i == 0u && params.has_h != 0u { store2_h(written, value, role.both); }
            if params.has_states != 0u { store2_states(i * tokens() * units() + written, value, role.both); }
        }
    }
}

@compute @workgroup_size(UNITS * SPLIT)
fn fused_forward(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let head = group % params.heads;
    let row0 = group / params.heads * ROWS;
    if row0 >= params.batch { return; }
    let begin = params.first_step + at_step.index * STEPS;
    let steps = min(STEPS, params.end_step - begin);

    let unit = thread % UNITS;
    let part = thread / UNITS;
    //@ for $gate in 0..RECURRENT
    //@ for $k in 0..DEPTH
    let w$gate_$k = weight($gateu, head, unit, part * DEPTH + $ku);
    //@ end
    //@ end
    let carries = role_of(thread / PAIRS % ROWS, thread % PAIRS * 2u, head, row0);
    let turn = thread / PAIRS / ROWS;
    let computes = role_of(part, unit, head, row0);

    //@ for $gate in 0..GATES
    let bias$gate = bias($gateu, computes.place);
    //@ end
    var states: array<f32, STATES>;
    if computes.exists {
        //@ for $s in 0..STATES
        states[$s] = work_f32(params.carried_at + state_at($su, computes.row, computes.place));
        //@ end
        h_now[unit / DEPTH][part * DEPTH + unit % DEPTH] = rounded(states[0]);
    }
    //@ for $i in 0..LOADS
    var input$i = vec2f();
    //@ end
    var reset_next = false;

    // Round 0 only asks for the first step's inputs, and the last one stores the last step's outputs.
    for (var round = 0u; ; round++) {
        let step = begin + round - 1u;
        workgroupBarrier();
        if round > 1u { store_outputs(carries, turn, step - 1u); }
        if round > steps { break; }
        //@ for $row in 0..ROWS
        //@ for $gate in 0..RECURRENT
        var sum$gate_$row = 0.0f;
        //@ end
        //@ for $k in 0..DEPTH
        let h$row_$k = h_now[part][$rowu * DEPTH + $ku];
        //@ for $gate in 0..RECURRENT
        sum$gate_$row += w$gate_$k * h$row_$k;
        //@ end
        //@ end
        //@ for $gate in 0..RECURRENT
        parts[part][$gate][$row][unit] = sum$gate_$row;
        //@ end
        //@ end
        //@ for $i in 0..LOADS
        if turn + $iu * TURNS < EXTERNAL {
            inputs[turn + $iu * TURNS][carries.line][carries.unit] = input$i.x;
            inputs[turn + $iu * TURNS][carries.line][carries.unit + 1u] = input$i.y;
        }
        input$i = load_input(carries, turn + $iu * TURNS, step + 1u);
        //@ end
        let reset = reset_next;
        reset_next = is_reset(computes.row, computes.length, step + 1u);

        workgroupBarrier();
        if round > 0u && computes.exists {
            var gates: array<f32, GATES>;
            var next: array<f32, STATES>;
            if step < computes.length {
                //@ for $gate in 0..GATES
                gates[$gate] = bias$gate;
                //@ end
                //@ for $gate in INNER..GATES
                gates[$gate] += inputs[$gateu - INNER][part][unit];
                //@ end
                var before: array<f32, STATES>;
                if !reset {
                    before = states;
                    //@ for $gate in 0..RECURRENT
                    var product$gate = 0.0f;
                    //@ for $part in 0..SPLIT
                    product$gate += parts[$part][$gate][part][unit];
                    //@ end
                    gates[$gate] += product$gate;
                    //@ end
                }
                next = cell_forward(before, gates);
                if params.clips_forward != 0u { next[0] = real_clamp(next[0], params.forward_clip); }
                states = next;
                h_now[unit / DEPTH][part * DEPTH + unit % DEPTH] = rounded(next[0]);
            }
            // Beyond a row's length the outputs are zeros.
            //@ for $s in 0..STATES
            outputs[$s][part][unit] = next[$s];
            //@ end
            if params.saves_gates != 0u {
                //@ for $gate in 0..GATES
                outputs[STATES + $gateu][part][unit] = gates[$gate];
                //@ end
            }
            if params.saves_wide != 0u {
                let stride = tokens() * units();
                let written = step_token(computes.row, computes.length, step) * units() + computes.place;
                //@ for $s in 0..STATES
                if kept_wide(WIDE, $su) { store_wide(rank(WIDE, $su) * stride + written, next[$s]); }
                //@ end
                //@ for $gate in 0..GATES
                if params.saves_gates != 0u && kept_wide(WIDE_GATES, $gateu) {
                    store_wide((countOneBits(WIDE) + rank(WIDE_GATES, $gateu)) * stride + written, gates[$gate]);
                }
                //@ end
            }
        }
    }
    if computes.exists {
        //@ for $s in 0..STATES
        work[params.carried_at + state_at($su, computes.row, computes.place)] = bitcast<u32>(states[$s]);
        //@ end
    }
}
