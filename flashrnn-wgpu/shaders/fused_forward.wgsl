// Up to STEPS steps of the forward pass, one dispatch: R stays in registers, h in workgroup memory. Threads: fused.wgsl.
//
// A step has two phases, with a barrier before each:
//   1. all threads: their part of R h, of all gates of a unit; the outputs of the step before go to memory; wx of this step, which
//      was asked for a step ago, to workgroup memory; wx of the next is asked for.
//   2. turn 0: the sum of the parts, the cell, and what the others carry out.
//
// The states are carried in `work` at `carried_at`, [S, B, N, D], from dispatch to dispatch in place.

// By part of k; the last place keeps the parts in different banks.
var<workgroup> h_now: array<array<vec2f, ROWS * HALF + 1u>, SPLIT>;
var<workgroup> parts: array<array<array<array<f32, UNITS>, ROWS>, RECURRENT>, SPLIT>;
var<workgroup> inputs: array<array<array<vec2f, PAIRS>, ROWS>, max(EXTERNAL, 1u)>;
var<workgroup> outputs: array<array<array<vec2f, PAIRS>, ROWS>, STATES + GATES>;

fn keep_h(role: Role, h: vec2f) {
    let unit = 2u * role.pair;
    h_now[unit / DEPTH][role.line * HALF + unit % DEPTH / 2u] = h;
}

// This thread's of wx.
fn load_input(role: Role, turn: u32, step: u32, token: u32) -> vec2f {
    if turn >= EXTERNAL || step >= role.length { return vec2f(); }
    return load2_wx((token * EXTERNAL + turn) * units() + role.place);
}

// This thread's of `outputs` to memory.
fn store_outputs(role: Role, token: u32) {
    if !role.exists { return; }
    let written = token * units() + role.place;
    let stride = tokens() * units();
    let states = select(1u, STATES, params.has_states != 0u);
    for (var turn = role.turn; turn < select(states, STATES + GATES, params.saves_gates != 0u); turn += TURNS) {
        let value = outputs[turn][role.line][role.pair];
        if turn >= STATES {
            store2_gates((token * GATES + turn - STATES) * units() + role.place, value, role.both);
        } else {
            if turn == 0u && params.has_h != 0u { store2_h(written, value, role.both); }
            if params.has_states != 0u { store2_states(turn * stride + written, value, role.both); }
        }
    }
}

@compute @workgroup_size(UNITS * SPLIT)
fn fused_forward(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let head = group % params.heads;
    let row0 = group / params.heads * ROWS;
    if row0 >= params.batch { return; }
    let begin = (params.first_step + at_step.index) * STEPS;
    let end = min(begin + STEPS, params.time);
    let role = role_of(thread, head, row0);
    let computes = role.turn == 0u && role.exists;

    let unit = thread % UNITS;
    let part = thread / UNITS;
    //@ for $gate in 0..RECURRENT
    //@ for $k in 0..HALF
    let w$gate_$k = vec2f(weight($gateu, head, unit, part * DEPTH + 2u * $ku), weight($gateu, head, unit, part * DEPTH + 2u * $ku + 1u));
    //@ end
    //@ end

    // Of turn 0: the bias, and the states of the two units.
    //@ for $gate in 0..GATES
    let bias$gate = vec2f(bias($gateu, role.place), bias($gateu, role.place + 1u));
    //@ end
    //@ for $u in 0..2
    var states$u: array<f32, STATES>;
    //@ end
    if computes {
        //@ for $s in 0..STATES
        let carried$s = load2_work(params.carried_at + state_at($su, role.row, role.place));
        //@ for $u in 0..2
        states$u[$s] = carried$s[$u];
        //@ end
        //@ end
        keep_h(role, vec2f(rounded(states0[0]), select(0.0f, rounded(states1[0]), role.both)));
    }

    var token_before = 0u;
    var token = step_token(role.row, role.length, begin);
    var reset = is_reset(role.row, role.length, begin);
    //@ for $i in 0..LOADS
    var input$i = load_input(role, role.turn + $iu * TURNS, begin, token);
    //@ end
    for (var step = begin; step < end; step++) {
        workgroupBarrier();
        let token_next = step_token(role.row, role.length, step + 1u);
        let reset_next = is_reset(role.row, role.length, step + 1u);
        //@ for $row in 0..ROWS
        //@ for $gate in 0..RECURRENT
        var sum$gate_$row = vec2f();
        //@ end
        //@ for $k in 0..HALF
        let h$row_$k = h_now[part][$rowu * HALF + $ku];
        //@ for $gate in 0..RECURRENT
        sum$gate_$row += w$gate_$k * h$row_$k;
        //@ end
        //@ end
        //@ for $gate in 0..RECURRENT
        parts[part][$gate][$row][unit] = sum$gate_$row.x + sum$gate_$row.y;
        //@ end
        //@ end
        if step > begin { store_outputs(role, token_before); }
        //@ for $i in 0..LOADS
        if role.turn + $iu * TURNS < EXTERNAL { inputs[role.turn + $iu * TURNS][role.line][role.pair] = input$i; }
        input$i = load_input(role, role.turn + $iu * TURNS, step + 1u, token_next);
        //@ end

        workgroupBarrier();
        if computes {
            //@ for $u in 0..2
            var gates$u: array<f32, GATES>;
            var next$u: array<f32, STATES>;
            //@ end
            let goes_on = step < role.length;
            if goes_on {
                //@ for $gate in 0..GATES
                var gate$gate = bias$gate;
                //@ end
                //@ for $gate in INNER..GATES
                gate$gate += inputs[$gateu - INNER][role.line][role.pair];
                //@ end
                if !reset {
                    //@ for $gate in 0..RECURRENT
                    var product$gate = vec2f();
                    //@ for $part in 0..SPLIT
                    product$gate += vec2f(parts[$part][$gate][role.line][2u * role.pair], parts[$part][$gate][role.line][2u * role.pair + 1u]);
                    //@ end
                    gate$gate += product$gate;
                    //@ end
                }
                //@ for $u in 0..2
                //@ for $gate in 0..GATES
                gates$u[$gate] = gate$gate[$u];
                //@ end
                var before$u: array<f32, STATES>;
                if !reset { before$u = states$u; }
                next$u = cell_forward(before$u, gates$u);
                if params.clips_forward != 0u { next$u[0] = real_clamp(next$u[0], params.forward_clip); }
                states$u = next$u;
                //@ end
                keep_h(role, vec2f(rounded(next0[0]), select(0.0f, rounded(next1[0]), role.both)));
            }
            // Beyond a row's length the outputs are zeros.
            //@ for $s in 0..STATES
            outputs[$s][role.line][role.pair] = vec2f(next0[$s], next1[$s]);
            //@ end
            if params.saves_gates != 0u {
                //@ for $gate in 0..GATES
                outputs[STATES + $gateu][role.line][role.pair] = vec2f(gates0[$gate], gates1[$gate]);
                //@ end
            }
            if params.saves_wide != 0u {
                let stride = tokens() * units();
                let written = token * units() + role.place;
                //@ for $s in 0..STATES
                if kept_wide(WIDE, $su) { store2_wide(rank(WIDE, $su) * stride + written, vec2f(next0[$s], next1[$s]), role.both); }
                //@ end
                //@ for $gate in 0..GATES
                if params.saves_gates != 0u && kept_wide(WIDE_GATES, $gateu) {
                    store2_wide((countOneBits(WIDE) + rank(WIDE_GATES, $gateu)) * stride + written, vec2f(gates0[$gate], gates1[$gate]), role.both);
                }
                //@ end
            }
        }
        token_before = token;
        token = token_next;
        reset = reset_next;
    }
    workgroupBarrier();
    store_outputs(role, token_before);
    if computes {
        //@ for $s in 0..STATES
        store2_work(params.carried_at + state_at($su, role.row, role.place), vec2f(states0[$s], states1[$s]), role.both);
        //@ end
    }
}
