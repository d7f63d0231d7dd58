// Recomputes the gates of some steps, g = x_t + b + R h, in f32, as gates [steps, B, G, N, D].
//
// A workgroup of 16 x 16 invocations computes 16 units of one head and 16 rows of `gates`; an
// invocation computes all gates of one unit and row. R and h are loaded into workgroup memory in
// chunks of CHUNK along k. Workgroups are numbered by units (innermost), then heads, then rows.

// The number of rows of `gates`.
fn gates_rows() -> u32 { return params.gates_steps * params.batch; }

// The token of a row of `gates`.
fn recomputed_token(i: u32) -> u32 {
    let row = i % params.batch;
    return step_token(row, length_of(row), params.gates_step + i / params.batch);
}

var<workgroup> tile_r: array<f32, RECURRENT * 16u * (CHUNK + 1u)>;
var<workgroup> tile_h: array<f32, 16u * (CHUNK + 1u)>;

@compute @workgroup_size(16, 16)
fn recompute(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_id) local: vec3u,
               @builtin(local_invocation_index) thread: u32) {
    let unit_groups = (params.head_dim + 15u) / 16u;
    let group = group_index(id);
    let row0 = group / unit_groups / params.heads * 16u;
    if row0 >= gates_rows() { return; }
    let head = group / unit_groups % params.heads;
    let unit0 = group % unit_groups * 16u;

    var sums: array<f32, RECURRENT>;
    for (var k0 = 0u; k0 < params.head_dim; k0 += CHUNK) {
        workgroupBarrier();
        for (var i = thread; i < 16u * CHUNK; i += 256u) {
            let k = k0 + i % CHUNK;
            let line = i / CHUNK;
            let row = row0 + line;
            let unit = unit0 + line;
            var value = 0.0f;
            if k < params.head_dim && row < gates_rows() {
                value = previous_h(previous_of(recomputed_token(row)), head * params.head_dim + k);
            }
            tile_h[line * (CHUNK + 1u) + i % CHUNK] = value;
            for (var gate = 0u; gate < RECURRENT; gate++) {
                var weight = 0.0f;
                if k < params.head_dim && unit < params.head_dim {
                    weight = bitcast<f32>(weights[line_of_r(gate, head, unit) + k / 4u][k % 4u]);
                }
                tile_r[(gate * 16u + line) * (CHUNK + 1u) + i % CHUNK] = weight;
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < CHUNK; k++) {
            let h = tile_h[local.y * (CHUNK + 1u) + k];
            for (var gate = 0u; gate < RECURRENT; gate++) {
                sums[gate] += tile_r[(gate * 16u + local.x) * (CHUNK + 1u) + k] * h;
            }
        }
    }

    let row = row0 + local.y;
    let unit = unit0 + local.x;
    if row >= gates_rows() || unit >= params.head_dim { return; }
    let place = head * params.head_dim + unit;
    let token = recomputed_token(row);
    for (var gate = 0u; gate < GATES; gate++) {
        var value = bias(gate, place);
        if gate >= INNER { value += load_wx((token * EXTERNAL + gate - INNER) * units() + place); }
        if gate < RECURRENT { value += sums[gate]; }
        store_gates((row * GATES + gate) * units() + place, value);
    }
}
