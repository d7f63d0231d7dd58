// Packs the weights in the order of weights.wgsl. Each invocation writes one piece.
@compute @workgroup_size(64)
fn pack(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) thread: u32) {
    let i = group_index(id) * 64u + thread;
    let matrices = RECURRENT * units() * pieces();
    var piece = vec4f();
    if i < 2u * matrices {
        let line = i % matrices / pieces();
        let transposed = i >= matrices;
        for (var j = 0u; j < 4u; j++) {
            let k = i % pieces() * 4u + j;
            // (gate * N + head) * D + unit, or (head * D + unit) * Gr + gate
            let head = line / params.head_dim / select(1u, RECURRENT, transposed) % params.heads;
            let gate = select(line / units(), line % RECURRENT, transposed);
            let unit = line / select(1u, RECURRENT, transposed) % params.head_dim;
            let out = select(unit, k, transposed);
            let in = select(k, unit, transposed);
            if k < params.head_dim {
                piece[j] = rounded(load_r(
                    ((gate * params.heads + head) * params.head_dim + out) * params.head_dim + in));
            }
        }
    } else if i < step_pieces() {
        for (var j = 0u; j < 4u; j++) {
            let of_b = (i - 2u * matrices) * 4u + j;
            if of_b < GATES * units() { piece[j] = load_b(of_b); }
        }
    } else {
        return;
    }
    weights[i] = bitcast<vec4u>(piece);
}
