// Packs R for the fused kernels after the weights of weights.wgsl, first for the forward kernel and
// then for the backward kernel. The order is [N, pieces of a line, LINES, threads], so adjacent
// threads read adjacent pieces. A piece is 4 words, which hold 4 or 8 numbers of T along k of one
// line of one thread. Beyond the head it is padded with zeros. Each invocation writes one piece.
@compute @workgroup_size(64)
fn pack_fused(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) invocation: u32) {
    let i = group_index(id) * 64u + invocation;
    let of_pass = params.heads * PIECES_PER_HEAD;
    if i >= 2u * of_pass { return; }
    let backward = i >= of_pass;
    let head = i % of_pass / PIECES_PER_HEAD;
    let of_head = i % PIECES_PER_HEAD;
    let lines = select(RECURRENT, TILE, backward);
    let threads = PIECES_PER_HEAD / (PIECES_PER_LINE * lines);
    let thread = of_head % threads;
    let line = of_head / threads % lines;
    let k0 = of_head / threads / lines * NUMBERS;
    // Each part of k is shared by `columns` threads.
    let columns = select(UNITS, UNITS / TILE, backward);
    let part = thread / columns;
    let gate = select(line, part / SPLIT, backward);
    let first = part % SPLIT * DEPTH + k0;
    let unit = thread % columns + select(0u, line * columns, backward);
    var numbers: array<u32, NUMBERS>;
    for (var j = 0u; j < NUMBERS; j++) {
        let out = select(unit, first + j, backward);
        let in = select(first + j, unit, backward);
        var x = 0.0f;
        if out < params.head_dim && in < params.head_dim {
            x = load_r(
                ((gate * params.heads + head) * params.head_dim + out) * params.head_dim + in);
        }
        numbers[j] = narrow(x);
    }
    var piece: vec4u;
    for (var j = 0u; j < 4u; j++) {
        if NUMBERS == 8u {
            piece[j] = numbers[j * 2u % NUMBERS] | (numbers[(j * 2u + 1u) % NUMBERS] << 16u);
        } else {
            piece[j] = numbers[j];
        }
    }
    weights[step_pieces() + i] = piece;
}
