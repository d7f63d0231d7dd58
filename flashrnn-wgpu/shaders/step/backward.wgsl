// Runs one step of the backward pass per dispatch. The product of the next step's dg with R
// transposed (product.wgsl) is the gradient that reaches h through R; the cell's derivative, its
// epilogue, computes this step's dg. An extra step, -1, computes d_s0.
//
// Workgroups are numbered as in forward.wgsl. k runs over a head's units for one recurrent gate
// after another. A step stores two results in `work`: dg rounded to T at `exchange_at`, in one half
// of [2, B, Gr, N, D], and the gradient of the f32 states at `state_at`, [S, B, N, D], updated in
// place.

fn half_of(round: u32) -> u32 {
    return params.exchange_at + round % 2u * params.batch * RECURRENT * units();
}

// The index of a recurrent gate's dg in a half.
fn dg_at(row: u32, gate: u32, at: u32) -> u32 { return (row * RECURRENT + gate) * units() + at; }

fn line_piece(place: Place, line: u32, piece: u32) -> vec4f {
    let unit = place.unit0 + place.lines * 4u + line;
    return piece_of(line_of_transposed(place.head, unit), unit < params.head_dim, piece,
        RECURRENT * pieces());
}

fn row_piece(place: Place, row: u32, piece: u32) -> vec4f {
    if place.row0 + row >= params.batch || piece >= RECURRENT * pieces() { return vec4f(); }
    let line = dg_at(place.row0 + row, piece / pieces(), place.head * params.head_dim);
    return piece_of_work(half_of(params.first_step + at_step.index) + line, piece % pieces());
}

@compute @workgroup_size(256)
fn backward_step(@builtin(workgroup_id) id: vec3u, builtins: Builtins) {
    let thread = thread_of(builtins);
    let place = place_of(id, thread);
    if place.row0 >= params.batch { return; }
    let at = place.head * params.head_dim + place.unit;
    let round = params.first_step + at_step.index;
    let before_first = round == params.time;  // step -1
    let step = params.time - 1u - round;      // meaningless in step -1
    let stride = tokens() * units();
    // The next step contributes no gradient if this step is the row's last or a reset follows it.
    let last = select(step + 1u == place.length, place.length == 0u, before_first);
    let next_step = select(step + 1u, 0u, before_first);
    let follows = !last && !is_reset(place.row, place.length, next_step);
    let in_row = !before_first && step < place.length;
    let reset = is_reset(place.row, place.length, step);
    let token = step_token(place.row, place.length, step);

    // Load the other inputs of the derivative before the product, which hides their latency.
    //@ for $s in 0..STATES
    var d$s = vec2f();
    var before$s = vec2f();
    //@ end
    //@ for $gate in 0..GATES
    var gate$gate = vec2f();
    //@ end
    if place.exists {
        //@ for $s in 0..STATES
        if last && params.has_d_last != 0u {
            d$s = load2_work(params.d_last_at + state_index($su, place.row, at));
        }
        if in_row && $su < params.d_states_count {
            d$s += load2_d_states($su * stride + token * units() + at);
        }
        if follows { d$s += load2_work(params.state_at + state_index($su, place.row, at)); }
        //@ end
    }
    if place.exists && in_row {
        let row_of_gates = gates_row(token, place.row, step);
        //@ for $gate in 0..GATES
        if !RECOMPUTED && kept_wide(WIDE_GATES, $gateu) {
            gate$gate = load2_wide(
                (countOneBits(WIDE) + rank(WIDE_GATES, $gateu)) * stride + token * units() + at);
        } else {
            gate$gate = load2_gates((row_of_gates * GATES + $gateu) * units() + at);
        }
        //@ end
        if reset {
        } else if step == 0u {
            if params.has_s0 != 0u {
                //@ for $s in 0..STATES
                before$s = load2_work(params.s0_at + state_index($su, place.row, at));
                //@ end
            }
        } else {
            let previous = step_token(place.row, place.length, step - 1u) * units() + at;
            //@ for $s in 0..STATES
            if kept_wide(WIDE, $su) {
                before$s = load2_wide(rank(WIDE, $su) * stride + previous);
            } else {
                before$s = load2_states($su * stride + previous);
            }
            //@ end
        }
    }

    add_up(place, thread, product(place, thread), 0u);
    if !place.exists { return; }
    if follows && params.cut_recurrent_grad == 0u {
        let unit = place.unit - place.unit0;
        var dh = vec2f(added(place, unit / 4u, unit % 4u), added(place, unit / 4u, unit % 4u + 1u));
        if params.clips_gradient != 0u {
            dh = vec2f(real_clamp(dh.x, params.recurrent_grad_clip),
                real_clamp(dh.y, params.recurrent_grad_clip));
        }
        d0 += dh;
    }
    if before_first {
        //@ for $s in 0..STATES
        let is_zero$s = ((CONSTANT >> $su) & 1u) != 0u || (!follows && !last);
        store2_work(params.d_s0_at + state_index($su, place.row, at),
            select(d$s, vec2f(), is_zero$s), place.both);
        //@ end
        return;
    }

    var dg0: array<f32, GATES>;
    var dg1: array<f32, GATES>;
    if in_row {
        //@ for $u in 0..2
        var gates$u: array<f32, GATES>;
        var states$u: array<f32, STATES>;
        var d_of$u: array<f32, STATES>;
        //@ for $gate in 0..GATES
        gates$u[$gate] = gate$gate[$u];
        //@ end
        //@ for $s in 0..STATES
        states$u[$s] = before$s[$u];
        d_of$u[$s] = d$s[$u];
        //@ end
        if params.clips_forward != 0u {
            let next = cell_forward(states$u, gates$u);
            if abs(next[0]) > params.forward_clip { d_of$u[0] = 0.0f; }
        }
        let result$u = cell_backward(states$u, gates$u, d_of$u);
        dg$u = result$u.dg;
        //@ end
        //@ for $gate in 0..RECURRENT
        store2_work(half_of(round + 1u) + dg_at(place.row, $gateu, at),
            vec2f(rounded(dg0[$gate]), rounded(dg1[$gate])), place.both);
        //@ end
        //@ for $s in 0..STATES
        store2_work(params.state_at + state_index($su, place.row, at),
            vec2f(result0.ds[$s], result1.ds[$s]), place.both);
        //@ end
    }
    //@ for $gate in 0..INNER
    store2_work(params.inner_at + (token * INNER + $gateu) * units() + at,
        vec2f(rounded(dg0[$gate]), rounded(dg1[$gate])), place.both);
    //@ end
    //@ for $gate in INNER..GATES
    store2_d_wx((token * EXTERNAL + $gateu - INNER) * units() + at, vec2f(dg0[$gate], dg1[$gate]),
        place.both);
    //@ end
}
