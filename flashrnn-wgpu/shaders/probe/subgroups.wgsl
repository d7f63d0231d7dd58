// Whether subgroups are as sums_subgroups.wgsl takes them, of `time` threads: 256 bits, each of a
// thread that exists and gets from others what is theirs.
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
