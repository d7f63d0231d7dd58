// Runs up to STEPS steps of the forward pass in one dispatch, with h in workgroup memory.
// roles.wgsl describes the threads and the weights.
//
// A step has two phases, with a barrier before each:
//
// 1. All threads compute their part of R h, for all gates of a unit. They store the outputs of the
//    previous step, move the wx that they loaded a step ago to workgroup memory, and load the next
//    wx.
// 2. The threads of the cell add the parts and compute the cell. If a thread computes whole sums
//    (SHARED is 0), there is no barrier between the phases. A step then reads one of two BUFFERS
//    and writes the other, and wx is moved to workgroup memory one step earlier (AHEAD is 1).
//
// Between dispatches the states are in `work` at `state_at`, [S, B, N, D], updated in place.

const OUTPUTS = STATES + GATES;
const OPERANDS = BUFFERS;

// Returns the part of k over which a thread sums, for all gates of a unit.
fn part_of(thread: u32) -> u32 { return thread / UNITS; }

//@ if SHARED
var<workgroup> parts: array<array<array<f32, UNITS>, ROWS>, SPLIT * RECURRENT>;

fn set_part(thread: u32, gate: u32, line: u32, x: f32) {
    parts[part_of(thread) * RECURRENT + gate][line][thread % UNITS] = x;
}
//@ end
var<workgroup> inputs: array<array<array<f32, UNITS>, ROWS>, BUFFERS * max(EXTERNAL, 1u)>;
var<workgroup> outputs: array<array<array<f32, UNITS>, ROWS>, BUFFERS * OUTPUTS>;

// Loads a gate of wx at a step, without converting it.
fn fetch_input(role: Role, gate: u32, step: u32) -> vec2u {
    if gate >= EXTERNAL || step >= role.length { return vec2u(); }
    let token = step_token(role.row, role.length, step);
    return fetch2_wx((token * EXTERNAL + gate) * units() + role.place);
}

fn stage_input(role: Role, gate: u32, step: u32, fetched: vec2u) {
    if gate >= EXTERNAL { return; }
    let x = widen2(fetched);
    inputs[step % BUFFERS * EXTERNAL + gate][role.line][role.unit] = x.x;
    inputs[step % BUFFERS * EXTERNAL + gate][role.line][role.unit + 1u] = x.y;
}

// Stores the `outputs` of a step.
fn store_outputs(role: Role, io_tensor: u32, step: u32) {
    if !role.exists { return; }
    let token = step_token(role.row, role.length, step);
    let written = token * units() + role.place;
    let states = select(1u, STATES, params.has_states != 0u);
    let all = select(states, OUTPUTS, params.saves_gates != 0u);
    for (var i = io_tensor; i < all; i += IO_TENSORS) {
        let first_output = step % BUFFERS * OUTPUTS + i;
        let value = vec2f(outputs[first_output][role.line][role.unit],
            outputs[first_output][role.line][role.unit + 1u]);
        if i >= STATES {
            store2_gates((token * GATES + i - STATES) * units() + role.place, value, role.both);
        } else {
            if i == 0u && params.has_h != 0u { store2_h(written, value, role.both); }
            if params.has_states != 0u {
                store2_states(i * tokens() * units() + written, value, role.both);
            }
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
    let pass_pieces = forward_pieces();
    //@ load_weights
    let io = role_of(thread / PAIRS % ROWS, thread % PAIRS * 2u, head, row0);
    let io_tensor = thread / PAIRS / ROWS;
    let cell = role_of(line, unit, head, row0);

    //@ for $gate in 0..GATES
    let bias$gate = bias($gateu, cell.place);
    //@ end
    var states: array<f32, STATES>;
    if cell.exists {
        //@ for $s in 0..STATES
        states[$s] = work_f32(params.state_at + state_index($su, cell.row, cell.place));
        //@ end
        set_x(begin % BUFFERS, line, unit, saturated(states[0]));
    }
    //@ for $i in 0..LOADS
    var input$i = fetch_input(io, io_tensor + $iu * IO_TENSORS, begin);
    //@ if AHEAD
    stage_input(io, io_tensor + $iu * IO_TENSORS, begin, input$i);
    input$i = fetch_input(io, io_tensor + $iu * IO_TENSORS, begin + 1u);
    //@ end
    //@ end
    var reset = is_reset(cell.row, cell.length, begin);

    // The last iteration only stores the outputs of the last step.
    for (var step = begin; ; step++) {
        workgroupBarrier();
        if step > begin { store_outputs(io, io_tensor, step - 1u); }
        if step >= end { break; }
        //@ for $i in 0..LOADS
        stage_input(io, io_tensor + $iu * IO_TENSORS, step + AHEAD, input$i);
        input$i = fetch_input(io, io_tensor + $iu * IO_TENSORS, step + AHEAD + 1u);
        //@ end
        let backwards = step % 2u != 0u;
        let operand = step % BUFFERS;
        //@ product
        let reset_next = is_reset(cell.row, cell.length, step + 1u);

        //@ if SHARED
        workgroupBarrier();
        //@ end
        if cell.exists {
            var gates: array<f32, GATES>;
            var next: array<f32, STATES>;
            if step < cell.length {
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
                    //@ if !SHARED
                    gates[$gate] += sum$gate_0;
                    //@ end
                    //@ if SHARED
                    var product$gate = 0.0f;
                    //@ for $part in 0..PARTS
                    product$gate += parts[$partu * RECURRENT + $gateu][line][unit];
                    //@ end
                    gates[$gate] += product$gate;
                    //@ end
                    //@ end
                }
                next = cell_forward(before, gates);
                if params.clips_forward != 0u {
                    next[0] = real_clamp(next[0], params.forward_clip);
                }
                states = next;
            }
            // A row beyond its length keeps its state.
            set_x((step + 1u) % BUFFERS, line, unit, saturated(states[0]));
            // Beyond a row's length the outputs are zeros.
            let first_output = step % BUFFERS * OUTPUTS;
            //@ for $s in 0..STATES
            outputs[first_output + $su][line][unit] = next[$s];
            //@ end
            if params.saves_gates != 0u {
                //@ for $gate in 0..GATES
                outputs[first_output + STATES + $gateu][line][unit] = gates[$gate];
                //@ end
            }
            if params.saves_wide != 0u {
                let stride = tokens() * units();
                let written = step_token(cell.row, cell.length, step) * units() + cell.place;
                //@ for $s in 0..STATES
                if kept_wide(WIDE, $su) {
                    store_wide(rank(WIDE, $su) * stride + written, next[$s]);
                }
                //@ end
                //@ for $gate in 0..GATES
                if params.saves_gates != 0u && kept_wide(WIDE_GATES, $gateu) {
                    store_wide((countOneBits(WIDE) + rank(WIDE_GATES, $gateu)) * stride + written,
                        gates[$gate]);
                }
                //@ end
            }
        }
        reset = reset_next;
    }
    if cell.exists {
        //@ for $s in 0..STATES
        work[params.state_at + state_index($su, cell.row, cell.place)] = bitcast<u32>(states[$s]);
        //@ end
    }
}
