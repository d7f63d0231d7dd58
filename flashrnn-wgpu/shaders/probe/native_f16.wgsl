// Counts the f16 numbers that the driver's conversion gets wrong. A NaN may become any NaN. Each
// invocation tests two numbers.
@compute @workgroup_size(64)
fn native_f16(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) thread: u32) {
    let low = (group_index(id) * 64u + thread) * 2u;
    let built_in = bitcast<vec2u>(unpack2x16float(low | ((low + 1u) << 16u)));
    for (var i = 0u; i < 2u; i++) {
        let want = bitcast<u32>(widen_f16(low + i));
        let both_nan = (want & 0x7fffffffu) > 0x7f800000u
            && (built_in[i] & 0x7fffffffu) > 0x7f800000u;
        if built_in[i] != want && !both_nan { atomicAdd(&result[0], 1u); }
    }
}
