// Runs up to STEPS steps of the backward pass in one dispatch, with dg in workgroup memory.
// roles.wgsl describes the threads and the weights. After step 0, step -1 computes d_s0. `done`
// counts the steps before the current one.
//
// A step has two phases, with a barrier before each:
//
// 1. MULTIPLIERS threads compute the product of the next step's dg with R transposed, each for
//    LINES units and a part of one gate's k. All threads store the next step's dg, move the inputs
//    that they loaded a step ago to workgroup memory, and load those of the following iteration.
// 2. The threads of the cell add the parts and compute this step's dg with the cell's derivative.
//
// Between dispatches, dg rounded to T is in `work` at `exchange_at`, [B, Gr, N, D], and the
// gradient of the f32 states at `state_at`, [S, B, N, D], both updated in place.

// The inputs of a step: its gates, the states before it, and d_states.
const BEFORE = GATES;
const D_STATES = GATES + STATES;
const INPUTS = GATES + 2u * STATES;
// dg of each gate; the product reads those of the recurrent gates.
const OPERANDS = GATES;

var<workgroup> parts: array<array<array<f32, UNITS>, ROWS>, PARTS>;

// Returns the part of k, within one gate, over which a thread sums, for LINES units that are
// UNITS / LINES apart.
fn part_of(thread: u32) -> u32 { return thread / (UNITS / LINES); }
fn set_part(thread: u32, i: u32, line: u32, x: f32) {
    parts[part_of(thread)][line][thread % (UNITS / LINES) + i * (UNITS / LINES)] = x;
}
var<workgroup> inputs: array<array<array<f32, UNITS>, ROWS>, INPUTS>;

// An unconverted input of a step, and whether it is f32 in memory.
struct Fetched {
    bits: vec2u,
    wide: bool,
}

fn fetch_input(role: Role, i: u32, done: u32) -> Fetched {
    let step = params.time - 1u - done;
    if i >= INPUTS || done >= min(params.end_step, params.time) || step >= role.length {
        return Fetched();
    }
    let token = step_token(role.row, role.length, step);
    let stride = tokens() * units();
    if i < BEFORE {
        if !RECOMPUTED && kept_wide(WIDE_GATES, i) {
            return Fetched(
                fetch2_wide((countOneBits(WIDE) + rank(WIDE_GATES, i)) * stride
                    + token * units() + role.place),
                true);
        }
        return Fetched(
            fetch2_gates((gates_row(token, role.row, step) * GATES + i) * units() + role.place),
            RECOMPUTED);
    }
    if i >= D_STATES {
        let s = i - D_STATES;
        if s >= params.d_states_count { return Fetched(); }
        return Fetched(fetch2_d_states(s * stride + token * units() + role.place), false);
    }
    let s = i - BEFORE;
    if step == 0u {
        if params.has_s0 == 0u { return Fetched(); }
        let at = params.s0_at + state_index(s, role.row, role.place);
        return Fetched(vec2u(work[at], work[at + 1u]), true);
    }
    let before = step_token(role.row, role.length, step - 1u) * units() + role.place;
    if kept_wide(WIDE, s) { return Fetched(fetch2_wide(rank(WIDE, s) * stride + before), true); }
    return Fetched(fetch2_states(s * stride + before), false);
}

fn stage_input(role: Role, i: u32, fetched: Fetched) {
    if i >= INPUTS { return; }
    var x = bitcast<vec2f>(fetched.bits);
    if !fetched.wide { x = widen2(fetched.bits); }
    inputs[i][role.line][role.unit] = x.x;
    inputs[i][role.line][role.unit + 1u] = x.y;
}

// Stores dg of a step.
fn store_outputs(role: Role, io_tensor: u32, done: u32) {
    if !role.exists { return; }
    let token = step_token(role.row, role.length, params.time - 1u - done);
    for (var gate = io_tensor; gate < GATES; gate += IO_TENSORS) {
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

    let pass_pieces = backward_pieces();
    //@ load_weights
    let io = role_of(thread / PAIRS % ROWS, thread % PAIRS * 2u, head, row0);
    let io_tensor = thread / PAIRS / ROWS;
    let unit = thread % UNITS;
    let line = thread / UNITS;
    let cell = role_of(line, unit, head, row0);

    var d_state: array<f32, STATES>;
    if cell.exists && begin > 0u {
        //@ for $s in 0..STATES
        d_state[$s] = work_f32(params.state_at + state_index($su, cell.row, cell.place));
        //@ end
        //@ for $gate in 0..RECURRENT
        set_x($gateu, line, unit,
              work_f32(
                  params.exchange_at + (cell.row * RECURRENT + $gateu) * units() + cell.place));
        //@ end
    }
    //@ for $i in 0..LOADS
    var input$i = Fetched();
    //@ end
    var reset_next = is_reset(cell.row, cell.length, params.time - begin);
    var reset_after = false;

    // Round 0 only loads the inputs of the first step, and the last round only stores the outputs
    // of the last step.
    for (var round = 0u; ; round++) {
        let done = begin + round - 1u;
        let before_first = done == params.time;  // step -1
        let step = params.time - 1u - done;      // meaningless in step -1
        workgroupBarrier();
        if round > 1u && done <= params.time { store_outputs(io, io_tensor, done - 1u); }
        if round > steps { break; }
        //@ for $i in 0..LOADS
        stage_input(io, io_tensor + $iu * IO_TENSORS, input$i);
        input$i = fetch_input(io, io_tensor + $iu * IO_TENSORS, done + 1u);
        //@ end
        let backwards = done % 2u != 0u;
        let operand = 0u;
        //@ product
        let reset = reset_next;
        reset_next = done + 1u < params.time && is_reset(cell.row, cell.length, step - 1u);

        workgroupBarrier();
        if round > 0u && cell.exists {
            // The next step contributes no gradient if this step is the row's last or a reset
            // follows it.
            let last = select(step + 1u == cell.length, cell.length == 0u, before_first);
            let in_row = !before_first && step < cell.length;
            var d: array<f32, STATES>;
            //@ for $s in 0..STATES
            if last && params.has_d_last != 0u {
                d[$s] = work_f32(params.d_last_at + state_index($su, cell.row, cell.place));
            }
            if in_row { d[$s] += inputs[D_STATES + $su][line][unit]; }
            if !last && !reset_after { d[$s] += d_state[$s]; }
            //@ end
            if !last && !reset_after && params.cut_recurrent_grad == 0u {
                var product = 0.0f;
                //@ for $part in 0..PARTS
                product += parts[$part][line][unit];
                //@ end
                if params.clips_gradient != 0u {
                    product = real_clamp(product, params.recurrent_grad_clip);
                }
                d[0] += product;
            }
            var result: CellGradients;
            if in_row {
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
                d_state = result.ds;
            }
            if before_first {
                //@ for $s in 0..STATES
                let is_zero$s = ((CONSTANT >> $su) & 1u) != 0u || reset_after;
                work[params.d_s0_at + state_index($su, cell.row, cell.place)] =
                    select(bitcast<u32>(d[$s]), 0u, is_zero$s);
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
    if cell.exists {
        //@ for $s in 0..STATES
        work[params.state_at + state_index($su, cell.row, cell.place)] = bitcast<u32>(d_state[$s]);
        //@ end
        //@ for $gate in 0..RECURRENT
        work[params.exchange_at + (cell.row * RECURRENT + $gateu) * units() + cell.place] =
            bitcast<u32>(get_x($gateu, line, unit));
        //@ end
    }
}
