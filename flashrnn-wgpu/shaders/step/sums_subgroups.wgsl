// Stores the sums of a per-step product (product.wgsl). Subgroups of SUBGROUP threads first add
// SUBGROUP_PARTS parts of each sum by shuffles.

struct Builtins { @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32 }

// Numbers the threads so that those of a subgroup are adjacent.
fn thread_of(builtins: Builtins) -> u32 { return builtins.subgroup * SUBGROUP + builtins.lane; }

// Stores the sums of all lines in workgroup memory, four lines at a time. `first` is 0.
fn store_sums(place: Place, sums: array<vec4f, PADDED_LINES>, first: u32) {
    //@ for $four in 0..FOURS
    store_sums4(place, $fouru * 4u, sums[$four * 4], sums[$four * 4 + 1], sums[$four * 4 + 2],
        sums[$four * 4 + 3]);
    //@ end
}

// Two parts exchange two of their four lines, so that each has the sum of two lines; then four
// parts exchange again, so that each has one.
fn store_sums4(place: Place, first: u32, sum0: vec4f, sum1: vec4f, sum2: vec4f, sum3: vec4f) {
    let odd = (place.part & 1u) != 0u;
    let low = select(sum0, sum1, odd) + subgroupShuffleXor(select(sum1, sum0, odd), 4u);
    let high = select(sum2, sum3, odd) + subgroupShuffleXor(select(sum3, sum2, odd), 4u);
    let line = first + (place.part & 1u);
    if SUBGROUP_PARTS == 2u {
        if line < LINES { memory[sum_at(place, line)] = low; }
        if line + 2u < LINES { memory[sum_at(place, line + 2u)] = high; }
        return;
    }
    let upper = (place.part & 2u) != 0u;
    var sum = select(low, high, upper) + subgroupShuffleXor(select(high, low, upper), 8u);
    for (var mask = 16u; mask < 4u * SUBGROUP_PARTS; mask *= 2u) {
        sum += subgroupShuffleXor(sum, mask);
    }
    let own = line + (place.part & 2u);
    if place.part % SUBGROUP_PARTS < 4u && own < LINES { memory[sum_at(place, own)] = sum; }
}
