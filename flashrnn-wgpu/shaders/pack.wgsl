// weights: r [Gr, N, D_out, D_in] rounded to T, then b [G, N, D], both as f32. An invocation an element.
@compute @workgroup_size(64)
fn pack(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) thread: u32) {
    let i = group_index(id) * 64u + thread;
    let matrices = RECURRENT * units() * params.head_dim;
    if i < matrices {
        weights[i] = rounded(load_r(i));
    } else if i < matrices + GATES * units() {
        weights[i] = load_b(i - matrices);
    }
}
