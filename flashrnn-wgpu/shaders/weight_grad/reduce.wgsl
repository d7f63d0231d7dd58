// out [row_length] = the sum of partial [parts, row_length] over the parts, in order, added to the
// existing contents of `out` if `accumulate` is set. Four parts are loaded at a time.
@compute @workgroup_size(64)
fn reduce(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) thread: u32) {
    let i = group_index(id) * 64u + thread;
    if i >= params.row_length { return; }
    var sum = 0.0f;
    if params.accumulate != 0u { sum = load_out(i); }
    var part = 0u;
    for (; part + 4u <= params.parts; part += 4u) {
        //@ for $k in 0..4
        let sum$k = partial[(part + $ku) * params.row_length + i];
        //@ end
        //@ for $k in 0..4
        sum += sum$k;
        //@ end
    }
    for (; part < params.parts; part++) { sum += partial[part * params.row_length + i]; }
    store_out(i, sum);
}
