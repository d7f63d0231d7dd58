// Up to STEPS rounds of the backward pass, one dispatch: R stays in registers, dg in workgroup memory. Threads: fused.wgsl. Round r
// is step T - 1 - r; one more, step -1, gives d_s0.
//
// A round has two phases, with a barrier before each:
//   1. all threads: their part of the product of dg of the step after with R transposed, of TILE units, k in one gate; dg of the
//      step after goes to memory; what this round needs, asked for a round ago, to workgroup memory; the next round's is asked for.
//   2. turn 0: the sum of the parts, and the cell's derivative, which gives this step's dg.
//
// From dispatch to dispatch go, in `work` and in place, dg rounded to T at `exchange_at`, [B, Gr, N, D], and the gradient of the f32
// states at `carried_at`, [S, B, N, D].

// What a round needs: its gates, the states before it, and d_states.
const BEFORE = GATES;
const D_STATES = GATES + STATES;
const INPUTS = GATES + 2u * STATES;

// Rounded to T. By part of k, then by part of the gates that no product reads; the last place keeps the parts in different banks.
var<workgroup> dg_now: array<array<vec2f, ROWS * HALF + 1u>, GATES * SPLIT>;
var<workgroup> parts: array<array<array<f32, UNITS>, ROWS>, RECURRENT * SPLIT>;
var<workgroup> inputs: array<array<array<vec2f, PAIRS>, ROWS>, INPUTS>;

fn keep_dg(role: Role, gate: u32, dg: vec2f) {
    let unit = 2u * role.pair;
    dg_now[gate * SPLIT + unit / DEPTH][role.line * HALF + unit % DEPTH / 2u] = dg;
}

fn kept_dg(role: Role, gate: u32) -> vec2f {
    let unit = 2u * role.pair;
    return dg_now[gate * SPLIT + unit / DEPTH][role.line * HALF + unit % DEPTH / 2u];
}

// This thread's of `inputs` of a round.
fn load_input(role: Role, turn: u32, round: u32) -> vec2f {
    let step = params.time - 1u - round;
    if turn >= INPUTS || round >= params.time || step >= role.length { return vec2f(); }
    let token = step_token(role.row, role.length, step);
    let stride = tokens() * units();
    if turn < BEFORE {
        if !RECOMPUTED && kept_wide(WIDE_GATES, turn) {
            return load2_wide((countOneBits(WIDE) + rank(WIDE_GATES, turn)) * stride + token * units() + role.place);
        }
        return load2_gates((token * GATES + turn) * units() + role.place);
    }
    if turn >= D_STATES {
        let s = turn - D_STATES;
        if s >= params.d_states_count { return vec2f(); }
        return load2_d_states(s * stride + token * units() + role.place);
    }
    let s = turn - BEFORE;
    if step == 0u {
        if params.has_s0 == 0u { return vec2f(); }
        return load2_work(params.s0_at + state_at(s, role.row, role.place));
    }
    let before = step_token(role.row, role.length, step - 1u) * units() + role.place;
    if kept_wide(WIDE, s) { return load2_wide(rank(WIDE, s) * stride + before); }
    return load2_states(s * stride + before);
}

// This thread's of dg to memory.
fn store_outputs(role: Role, token: u32) {
    if !role.exists { return; }
    for (var gate = role.turn; gate < GATES; gate += TURNS) {
        let dg = kept_dg(role, gate);
        if gate < INNER {
            store2_work(params.inner_at + (token * INNER + gate) * units() + role.place, dg, role.both);
        } else {
            store2_d_wx((token * EXTERNAL + gate - INNER) * units() + role.place, dg, role.both);
        }
    }
}

@compute @workgroup_size(UNITS * SPLIT)
fn fused_backward(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) thread: u32) {
    let group = group_index(id);
    let head = group % params.heads;
    let row0 = group / params.heads * ROWS;
    if row0 >= params.batch { return; }
    let begin = (params.first_step + at_step.index) * STEPS;
    let end = min(begin + STEPS, params.time + 1u);
    let role = role_of(thread, head, row0);
    let computes = role.turn == 0u && role.exists;

    let unit = thread % (UNITS / TILE);
    let part = thread / (UNITS / TILE);
    let multiplies = part < RECURRENT * SPLIT;
    let k = part % SPLIT * DEPTH;
    //@ for $tile in 0..TILE
    //@ for $k in 0..HALF
    let w$tile_$k = vec2f(weight(part / SPLIT, head, k + 2u * $ku, unit + $tileu * (UNITS / TILE)), weight(part / SPLIT, head, k + 2u * $ku + 1u, unit + $tileu * (UNITS / TILE)));
    //@ end
    //@ end

    // Of turn 0: the gradient of the states of the two units.
    //@ for $u in 0..2
    var carried$u: array<f32, STATES>;
    //@ end
    if computes && begin > 0u {
        //@ for $s in 0..STATES
        let before$s = load2_work(params.carried_at + state_at($su, role.row, role.place));
        //@ for $u in 0..2
        carried$u[$s] = before$s[$u];
        //@ end
        //@ end
        //@ for $gate in 0..RECURRENT
        let before_dg$gate = load2_work(params.exchange_at + (role.row * RECURRENT + $gateu) * units() + role.place);
        keep_dg(role, $gateu, vec2f(before_dg$gate.x, select(0.0f, before_dg$gate.y, role.both)));
        //@ end
    }

    var token_after = 0u;
    var reset_after = is_reset(role.row, role.length, params.time - begin);
    //@ for $i in 0..LOADS
    var input$i = load_input(role, role.turn + $iu * TURNS, begin);
    //@ end
    var reset_loaded = begin < params.time && is_reset(role.row, role.length, params.time - 1u - begin);
    for (var round = begin; round < end; round++) {
        workgroupBarrier();
        let before_first = round == params.time;  // step -1
        let step = params.time - 1u - round;      // of no meaning there
        if multiplies {
            //@ for $row in 0..ROWS
            //@ for $tile in 0..TILE
            var sum$tile_$row = vec2f();
            //@ end
            //@ for $k in 0..HALF
            let dg$row_$k = dg_now[part][$rowu * HALF + $ku];
            //@ for $tile in 0..TILE
            sum$tile_$row += w$tile_$k * dg$row_$k;
            //@ end
            //@ end
            //@ for $tile in 0..TILE
            parts[part][$row][unit + $tileu * (UNITS / TILE)] = sum$tile_$row.x + sum$tile_$row.y;
            //@ end
            //@ end
        }
        if round > begin { store_outputs(role, token_after); }
        //@ for $i in 0..LOADS
        if role.turn + $iu * TURNS < INPUTS { inputs[role.turn + $iu * TURNS][role.line][role.pair] = input$i; }
        input$i = load_input(role, role.turn + $iu * TURNS, round + 1u);
        //@ end
        let reset = reset_loaded;
        reset_loaded = round + 1u < params.time && is_reset(role.row, role.length, step - 1u);
        token_after = step_token(role.row, role.length, step);

        workgroupBarrier();
        if computes {
            // No gradient comes from the step after where this is the row's last, or a reset lies between.
            let last = select(step + 1u == role.length, role.length == 0u, before_first);
            let goes_on = !before_first && step < role.length;
            let follows = !last && !reset_after;
            //@ for $s in 0..STATES
            var d$s = vec2f();
            if last && params.has_d_last != 0u { d$s = load2_work(params.d_last_at + state_at($su, role.row, role.place)); }
            if goes_on { d$s += inputs[D_STATES + $su][role.line][role.pair]; }
            if follows { d$s += vec2f(carried0[$s], carried1[$s]); }
            //@ end
            if follows && params.cut_recurrent_grad == 0u {
                var product = vec2f();
                //@ for $part in 0..PARTS
                product += vec2f(parts[$part][role.line][2u * role.pair], parts[$part][role.line][2u * role.pair + 1u]);
                //@ end
                if params.clips_gradient != 0u {
                    product = vec2f(real_clamp(product.x, params.recurrent_grad_clip), real_clamp(product.y, params.recurrent_grad_clip));
                }
                d0 += product;
            }
            if before_first {
                //@ for $s in 0..STATES
                let none$s = ((CONSTANT >> $su) & 1u) != 0u || reset_after;
                store2_work(params.d_s0_at + state_at($su, role.row, role.place), select(d$s, vec2f(), none$s), role.both);
                //@ end
            } else {
                // Beyond a row's length dg is zero.
                //@ for $u in 0..2
                var dg$u: array<f32, GATES>;
                //@ end
                if goes_on {
                    //@ for $u in 0..2
                    var gates$u: array<f32, GATES>;
                    var before$u: array<f32, STATES>;
                    var d_of$u: array<f32, STATES>;
                    //@ for $gate in 0..GATES
                    gates$u[$gate] = inputs[$gate][role.line][role.pair][$u];
                    //@ end
                    //@ for $s in 0..STATES
                    d_of$u[$s] = d$s[$u];
                    //@ end
                    if !reset {
                        //@ for $s in 0..STATES
                        before$u[$s] = inputs[BEFORE + $su][role.line][role.pair][$u];
                        //@ end
                    }
                    if params.clips_forward != 0u {
                        let next = cell_forward(before$u, gates$u);
                        if abs(next[0]) > params.forward_clip { d_of$u[0] = 0.0f; }
                    }
                    let result$u = cell_backward(before$u, gates$u, d_of$u);
                    carried$u = result$u.ds;
                    dg$u = result$u.dg;
                    //@ end
                }
                //@ for $gate in 0..GATES
                keep_dg(role, $gateu, vec2f(rounded(dg0[$gate]), select(0.0f, rounded(dg1[$gate]), role.both)));
                //@ end
            }
        }
        reset_after = reset;
    }
    if end > params.time { return; }
    workgroupBarrier();
    store_outputs(role, token_after);
    if computes {
        //@ for $s in 0..STATES
        store2_work(params.carried_at + state_at($su, role.row, role.place), vec2f(carried0[$s], carried1[$s]), role.both);
        //@ end
        //@ for $gate in 0..RECURRENT
        store2_work(params.exchange_at + (role.row * RECURRENT + $gateu) * units() + role.place, kept_dg(role, $gateu), role.both);
        //@ end
    }
}
