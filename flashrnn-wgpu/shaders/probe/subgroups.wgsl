// Tests that subgroups have `params.time` threads and shuffle as step/sums_subgroups.wgsl needs.
// Sets a bit for each of 256 threads that exists and receives the right values.
@compute @workgroup_size(256)
fn subgroups(
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let thread = subgroup * size + lane;
    var right = size == params.time;
    for (var mask = 4u; mask < size; mask *= 2u) {
        let other = subgroupShuffleXor(thread, mask);
        right = right && other == (thread ^ mask);
    }
    if right && thread < 256u { atomicOr(&result[thread / 32u], 1u << (thread % 32u)); }
}
