// Runs one step of the forward pass per dispatch: the product R h (product.wgsl) with the cell as
// its epilogue.
//
// Workgroups are numbered by groups of 8 units (innermost), then heads, then groups of 16 rows.
//
// The state is in `work` at `state_at`, [2, S, B, N, D]. A step reads one half and writes the
// other, because other workgroups still read the state that it would overwrite.

fn half_of(step: u32) -> u32 {
    return params.state_at + step % 2u * STATES * params.batch * units();
}

fn line_piece(place: Place, gate: u32, piece: u32) -> vec4f {
    let unit = place.unit0 + place.lines;
    return piece_of(line_of_r(gate, place.head, unit), unit < params.head_dim, piece, pieces());
}

fn row_piece(place: Place, row: u32, piece: u32) -> vec4f {
    if place.row0 + row >= params.batch { return vec4f(); }
    let line = half_of(params.first_step + at_step.index)
        + state_index(0u, place.row0 + row, place.head * params.head_dim);
    let h = piece_of_work(line, piece);
    return vec4f(saturated(h.x), saturated(h.y), saturated(h.z), saturated(h.w));
}

@compute @workgroup_size(256)
fn forward_step(@builtin(workgroup_id) id: vec3u, builtins: Builtins) {
    let thread = thread_of(builtins);
    let place = place_of(id, thread);
    if place.row0 >= params.batch { return; }
    let step = params.first_step + at_step.index;
    let at = place.head * params.head_dim + place.unit;
    let token = step_token(place.row, place.length, step);
    let in_row = step < place.length;
    let reset = is_reset(place.row, place.length, step);

    // Load the other inputs of the cell before the product, which hides their latency.
    //@ for $gate in 0..GATES
    var gate$gate = vec2f();
    //@ end
    //@ for $s in 0..STATES
    var before$s = vec2f();
    //@ end
    if place.exists {
        //@ for $s in 0..STATES
        before$s = load2_work(half_of(step) + state_index($su, place.row, at));
        //@ end
        if in_row {
            //@ for $gate in 0..GATES
            gate$gate = vec2f(bias($gateu, at), bias($gateu, at + 1u));
            //@ end
            //@ for $gate in INNER..GATES
            gate$gate += load2_wx((token * EXTERNAL + $gateu - INNER) * units() + at);
            //@ end
        }
    }

    let sums = product(place, thread);
    var gates0: array<f32, GATES>;
    var gates1: array<f32, GATES>;
    //@ for $gate in 0..GATES
    gates0[$gate] = gate$gate.x;
    gates1[$gate] = gate$gate.y;
    //@ end
    for (var first = 0u; first < RECURRENT; first += AT_ONCE) {
        add_up(place, thread, sums, first);
        if place.exists && in_row && !reset {
            //@ for $gate in 0..RECURRENT
            if first <= $gateu && $gateu < first + AT_ONCE {
                gates0[$gate] += added(place, place.unit - place.unit0, $gateu - first);
                gates1[$gate] += added(place, place.unit - place.unit0 + 1u, $gateu - first);
            }
            //@ end
        }
    }
    if !place.exists { return; }

    var next0: array<f32, STATES>;
    var next1: array<f32, STATES>;
    if in_row {
        //@ for $u in 0..2
        var states$u: array<f32, STATES>;
        if !reset {
            //@ for $s in 0..STATES
            states$u[$s] = before$s[$u];
            //@ end
        }
        next$u = cell_forward(states$u, gates$u);
        if params.clips_forward != 0u { next$u[0] = real_clamp(next$u[0], params.forward_clip); }
        //@ end
    }
    // Beyond a row's length the outputs are zeros.
    let written = token * units() + at;
    let stride = tokens() * units();
    if params.has_h != 0u { store2_h(written, vec2f(next0[0], next1[0]), place.both); }
    //@ for $s in 0..STATES
    let next_$s = vec2f(next0[$s], next1[$s]);
    store2_work(half_of(step + 1u) + state_index($su, place.row, at),
        select(before$s, next_$s, in_row), place.both);
    if params.has_states != 0u { store2_states($su * stride + written, next_$s, place.both); }
    if params.saves_wide != 0u && kept_wide(WIDE, $su) {
        store2_wide(rank(WIDE, $su) * stride + written, next_$s, place.both);
    }
    //@ end
    if params.saves_gates != 0u {
        //@ for $gate in 0..GATES
        let value$gate = vec2f(gates0[$gate], gates1[$gate]);
        store2_gates((token * GATES + $gateu) * units() + at, value$gate, place.both);
        if kept_wide(WIDE_GATES, $gateu) {
            store2_wide((countOneBits(WIDE) + rank(WIDE_GATES, $gateu)) * stride + written,
                value$gate, place.both);
        }
        //@ end
    }
}
