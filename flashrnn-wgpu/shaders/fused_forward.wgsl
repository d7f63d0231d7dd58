// Up to STEPS steps of the forward pass, one dispatch: h in workgroup memory. Threads and weights:
// fused.wgsl.
//
// A step has two phases, with a barrier before each:
//   1. all threads: their part of R h, of all gates of a unit; the outputs of the step before go to
//      memory; wx of a step, which was
//      asked for a step ago, to workgroup memory; wx of the next is asked for.
//   2. those that compute: the sum of the parts, and the cell. Where a thread has its whole sum
//      (SHARED is 0) there is no barrier between the two. What a step writes then lies beside what
//      it reads, in the other of two BUFFERS, and wx is AHEAD by a step.
//
// The states are carried in `work` at `carried_at`, [S, B, N, D], from dispatch to dispatch in
// place.

const OUTPUTS = STATES + GATES;
const OPERANDS = BUFFERS;

// A thread has a part of k of all gates of a unit.
fn part_of(thread: u32) -> u32 { return thread / UNITS; }

//@ for $shared in 0..SHARED
var<workgroup> parts: array<array<array<f32, UNITS>, ROWS>, SPLIT * RECURRENT>;

fn set_part(thread: u32, gate: u32, line: u32, x: f32) { parts[part_of(thread) * RECURRENT + gate][line][thread % UNITS] = x; }
//@ end
var<workgroup> inputs: array<array<array<f32, UNITS>, ROWS>, BUFFERS * max(EXTERNAL, 1u)>;
var<workgroup> outputs: array<array<array<f32, UNITS>, ROWS>, BUFFERS * OUTPUTS>;

// One of wx's gates at a step, as it lies in memory.
fn ask_input(role: Role, gate: u32, step: u32) -> vec2u {
    if gate >= EXTERNAL || step >= role.length { return vec2u(); }
    let token = step_token(role.row, role.length, step);
    return fetch2_wx((token * EXTERNAL + gate) * units() + role.place);
}

fn put_input(role: Role, gate: u32, step: u32, asked: vec2u) {
    if gate >= EXTERNAL { return; }
    let x = widen2(asked);
    inputs[step % BUFFERS * EXTERNAL + gate][role.line][role.unit] = x.x;
    inputs[step % BUFFERS * EXTERNAL + gate][role.line][role.unit + 1u] = x.y;
}

// `outputs` of a step to memory.
fn store_outputs(role: Role, turn: u32, step: u32) {
    if !role.exists { return; }
    let token = step_token(role.row, role.length, step);
    let written = token * units() + role.place;
    let states = select(1u, STATES, params.has_states != 0u);
    let all = select(states, OUTPUTS, params.saves_gates != 0u);
    for (var i = turn; i < all; i += TURNS) {
        let of_step = step % BUFFERS * OUTPUTS + i;
        let value = vec2f(outputs[of_step][role.line][role.unit], outputs[of_step][role.line][role.unit + 1u]);
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
    let begin = params.first_step + at_step.index * STEPS;
    let end = min(begin + STEPS, params.end_step);

    let unit = thread % UNITS;
    let line = thread / UNITS;
    let of_pass = forward_pieces();
    //@ weights
    let carries = role_of(thread / PAIRS % ROWS, thread % PAIRS * 2u, head, row0);
    let turn = thread / PAIRS / ROWS;
    let computes = role_of(line, unit, head, row0);

    //@ for $gate in 0..GATES
    let bias$gate = bias($gateu, computes.place);
    //@ end
    var states: array<f32, STATES>;
    if computes.exists {
        //@ for $s in 0..STATES
        states[$s] = work_f32(params.carried_at + state_at($su, computes.row, computes.place));
        //@ end
        set_x(begin % BUFFERS, line, unit, saturated(states[0]));
    }
    //@ for $i in 0..LOADS
    var input$i = ask_input(carries, turn + $iu * TURNS, begin);
    //@ for $ahead in 0..AHEAD
    put_input(carries, turn + $iu * TURNS, begin, input$i);
    input$i = ask_input(carries, turn + $iu * TURNS, begin + 1u);
    //@ end
    //@ end
    var reset = is_reset(computes.row, computes.length, begin);

    // The last round only stores the last step's outputs.
    for (var step = begin; ; step++) {
        workgroupBarrier();
        if step > begin { store_outputs(carries, turn, step - 1u); }
        if step >= end { break; }
        //@ for $i in 0..LOADS
        put_input(carries, turn + $iu * TURNS, step + AHEAD, input$i);
        input$i = ask_input(carries, turn + $iu * TURNS, step + AHEAD + 1u);
        //@ end
        let backwards = step % 2u != 0u;
        let operand = step % BUFFERS;
        //@ product
        let reset_next = is_reset(computes.row, computes.length, step + 1u);

        //@ for $shared in 0..SHARED
        workgroupBarrier();
        //@ end
        if computes.exists {
            var gates: array<f32, GATES>;
            var next: array<f32, STATES>;
            if step < computes.length {
                //@ for $gate in 0..GATES
                gates[$gate] = bias$gate;
                //@ end
                //@ for $gate in INNER..GATES
                gates[$gate] += inputs[step % BUFFERS * EXTERNAL + $gateu - INNER][line][unit];
                //@ end
                var before: array<f32, STATES>;
                if !reset {
                    before = states;
                    //@ for $gate in 0..RECURRENT
                    //@ for $own in SHARED..1
                    gates[$gate] += sum$gate_0;
                    //@ end
                    //@ for $shared in 0..SHARED
                    var product$gate = 0.0f;
                    //@ for $part in 0..PARTS
                    product$gate += parts[$partu * RECURRENT + $gateu][line][unit];
                    //@ end
                    gates[$gate] += product$gate;
                    //@ end
                    //@ end
                }
                next = cell_forward(before, gates);
                if params.clips_forward != 0u { next[0] = real_clamp(next[0], params.forward_clip); }
                states = next;
            }
            // A row that has ended keeps its state.
            set_x((step + 1u) % BUFFERS, line, unit, saturated(states[0]));
            // Beyond a row's length the outputs are zeros.
            let of_step = step % BUFFERS * OUTPUTS;
            //@ for $s in 0..STATES
            outputs[of_step + $su][line][unit] = next[$s];
            //@ end
            if params.saves_gates != 0u {
                //@ for $gate in 0..GATES
                outputs[of_step + STATES + $gateu][line][unit] = gates[$gate];
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
        reset = reset_next;
    }
    if computes.exists {
        //@ for $s in 0..STATES
        work[params.carried_at + state_at($su, computes.row, computes.place)] = bitcast<u32>(states[$s]);
        //@ end
    }
}
