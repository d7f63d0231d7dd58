// Up to STEPS steps of the backward pass, one dispatch: dg in workgroup memory. Threads and
// weights: fused.wgsl. After step 0 comes one more, -1, which gives d_s0; `done` counts the steps
// there were before one.
//
// A step has two phases, with a barrier before each:
//   1. all threads: their part of the product of dg of the step after with R transposed, of LINES
//      units, k in one gate; dg of the
//      step after goes to memory; what this step needs, asked for a step ago, to workgroup memory; the next one's is asked for.
//   2. those that compute: the sum of the parts, and the cell's derivative, which gives this step's
//      dg.
//
// From dispatch to dispatch go, in `work` and in place, dg rounded to T at `exchange_at`, [B, Gr,
// N, D], and the gradient of the f32 states at `carried_at`, [S, B, N, D].

// What a step needs: its gates, the states before it, and d_states.
const BEFORE = GATES;
const D_STATES = GATES + STATES;
const INPUTS = GATES + 2u * STATES;
// dg of each gate; no product reads those of the gates that are not recurrent.
const OPERANDS = GATES;

var<workgroup> parts: array<array<array<f32, UNITS>, ROWS>, PARTS>;

// A thread has a part of k of one gate, of LINES units that lie a column apart.
fn part_of(thread: u32) -> u32 { return thread / (UNITS / LINES); }
fn set_part(thread: u32, i: u32, line: u32, x: f32) {
    parts[part_of(thread)][line][thread % (UNITS / LINES) + i * (UNITS / LINES)] = x;
}
var<workgroup> inputs: array<array<array<f32, UNITS>, ROWS>, INPUTS>;

// One of the inputs of a step, as it lies in memory, and whether as f32.
struct Asked {
    bits: vec2u,
    wide: bool,
}

fn ask_input(role: Role, i: u32, done: u32) -> Asked {
    let step = params.time - 1u - done;
    if i >= INPUTS || done >= min(params.end_step, params.time) || step >= role.length { return Asked(); }
    let token = step_token(role.row, role.length, step);
    let stride = tokens() * units();
    if i < BEFORE {
        if !RECOMPUTED && kept_wide(WIDE_GATES, i) {
            return Asked(fetch2_wide((countOneBits(WIDE) + rank(WIDE_GATES, i)) * stride + token * units() + role.place), true);
        }
        return Asked(fetch2_gates((gates_row(token, role.row, step) * GATES + i) * units() + role.place), RECOMPUTED);
    }
    if i >= D_STATES {
        let s = i - D_STATES;
        if s >= params.d_states_count { return Asked(); }
        return Asked(fetch2_d_states(s * stride + token * units() + role.place), false);
    }
    let s = i - BEFORE;
    if step == 0u {
        if params.has_s0 == 0u { return Asked(); }
        let at = params.s0_at + state_at(s, role.row, role.place);
        return Asked(vec2u(work[at], work[at + 1u]), true);
    }
    let before = step_token(role.row, role.length, step - 1u) * units() + role.place;
    if kept_wide(WIDE, s) { return Asked(fetch2_wide(rank(WIDE, s) * stride + before), true); }
    return Asked(fetch2_states(s * stride + before), false);
}

fn put_input(role: Role, i: u32, asked: Asked) {
    if i >= INPUTS { return; }
    var x = bitcast<vec2f>(asked.bits);
    if !asked.wide { x = widen2(asked.bits); }
    inputs[i][role.line][role.unit] = x.x;
    inputs[i][role.line][role.unit + 1u] = x.y;
}

// dg of a step to memory.
fn store_outputs(role: Role, turn: u32, done: u32) {
    if !role.exists { return; }
    let token = step_token(role.row, role.length, params.time - 1u - done);
    for (var gate = turn; gate < GATES; gate += TURNS) {
        let dg = vec2f(get_x(gate, role.line, role.unit), get_x(gate, role.line, role.unit + 1u));
        if gate < INNER {
            let inner = params.inner_at + (token * INNER + gate) * units() + role.place;
            work[inner] = bitcast<u32>(dg.x);
            if role.both { work[inner + 1u] = bitcast<u32>(dg.y); }
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
    let begin = params.first_step + at_step.index * STEPS;
    let steps = min(STEPS, params.end_step - begin);

    let of_pass = backward_pieces();
    //@ weights
    let carries = role_of(thread / PAIRS % ROWS, thread % PAIRS * 2u, head, row0);
    let turn = thread / PAIRS / ROWS;
    let unit = thread % UNITS;
    let line = thread / UNITS;
    let computes = role_of(line, unit, head, row0);

    var carried: array<f32, STATES>;
    if computes.exists && begin > 0u {
        //@ for $s in 0..STATES
        carried[$s] = work_f32(params.carried_at + state_at($su, computes.row, computes.place));
        //@ end
        //@ for $gate in 0..RECURRENT
        set_x($gateu, line, unit,
              work_f32(params.exchange_at + (computes.row * RECURRENT + $gateu) * units() + computes.place));
        //@ end
    }
    //@ for $i in 0..LOADS
    var input$i = Asked();
    //@ end
    var reset_next = is_reset(computes.row, computes.length, params.time - begin);
    var reset_after = false;

    // Round 0 only asks for the first step's inputs, and the last one stores the last step's
    // outputs.
    for (var round = 0u; ; round++) {
        let done = begin + round - 1u;
        let before_first = done == params.time;  // step -1
        let step = params.time - 1u - done;      // of no meaning there
        workgroupBarrier();
        if round > 1u && done <= params.time { store_outputs(carries, turn, done - 1u); }
        if round > steps { break; }
        //@ for $i in 0..LOADS
        put_input(carries, turn + $iu * TURNS, input$i);
        input$i = ask_input(carries, turn + $iu * TURNS, done + 1u);
        //@ end
        let backwards = done % 2u != 0u;
        let operand = 0u;
        //@ product
        let reset = reset_next;
        reset_next = done + 1u < params.time && is_reset(computes.row, computes.length, step - 1u);

        workgroupBarrier();
        if round > 0u && computes.exists {
            // No gradient comes from the step after where this is the row's last, or a reset lies
            // between.
            let last = select(step + 1u == computes.length, computes.length == 0u, before_first);
            let goes_on = !before_first && step < computes.length;
            var d: array<f32, STATES>;
            //@ for $s in 0..STATES
            if last && params.has_d_last != 0u {
                d[$s] = work_f32(params.d_last_at + state_at($su, computes.row, computes.place));
            }
            if goes_on { d[$s] += inputs[D_STATES + $su][line][unit]; }
            if !last && !reset_after { d[$s] += carried[$s]; }
            //@ end
            if !last && !reset_after && params.cut_recurrent_grad == 0u {
                var product = 0.0f;
                //@ for $part in 0..PARTS
                product += parts[$part][line][unit];
                //@ end
                if params.clips_gradient != 0u { product = real_clamp(product, params.recurrent_grad_clip); }
                d[0] += product;
            }
            var result: CellGradients;
            if goes_on {
                var gates: array<f32, GATES>;
                var before: array<f32, STATES>;
                //@ for $gate in 0..GATES
                gates[$gate] = inputs[$gate][line][unit];
                //@ end
                if !reset {
                    //@ for $s in 0..STATES
                    before[$s] = inputs[BEFORE + $su][line][unit];
                    //@ end
                }
                if params.clips_forward != 0u {
                    let next = cell_forward(before, gates);
                    if abs(next[0]) > params.forward_clip { d[0] = 0.0f; }
                }
                result = cell_backward(before, gates, d);
                carried = result.ds;
            }
            if before_first {
                //@ for $s in 0..STATES
                let none$s = ((CONSTANT >> $su) & 1u) != 0u || reset_after;
                work[params.d_s0_at + state_at($su, computes.row, computes.place)] = select(bitcast<u32>(d[$s]), 0u, none$s);
                //@ end
            } else {
                // Beyond a row's length dg is zero.
                //@ for $gate in 0..GATES
                set_x($gateu, line, unit, rounded(result.dg[$gate]));
                //@ end
            }
        }
        reset_after = reset;
    }
    if computes.exists {
        //@ for $s in 0..STATES
        work[params.carried_at + state_at($su, computes.row, computes.place)] = bitcast<u32>(carried[$s]);
        //@ end
        //@ for $gate in 0..RECURRENT
        work[params.exchange_at + (computes.row * RECURRENT + $gateu) * units() + computes.place] =
            bitcast<u32>(get_x($gateu, line, unit));
        //@ end
    }
}
