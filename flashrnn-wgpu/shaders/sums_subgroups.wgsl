// Sums of the threads of a step's product (step.wgsl), first added up within subgroups of SUBGROUP
// threads: TOGETHER parts of each.

struct Builtins { @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32 }

// Counted so that a subgroup's threads are neighbours.
fn thread_of(builtins: Builtins) -> u32 { return builtins.subgroup * SUBGROUP + builtins.lane; }

// Brings the sums of all lines to memory, four at a time; `first` is 0.
fn keep(place: Place, sums: array<vec4f, HELD>, first: u32) {
    //@ for $four in 0..FOURS
    keep4(place, $fouru * 4u, sums[$four * 4], sums[$four * 4 + 1], sums[$four * 4 + 2], sums[$four * 4 + 3]);
    //@ end
}

// Two parts exchange halves of what they have, so that each has two lines of both; then each four
// parts one line.
fn keep4(place: Place, first: u32, sum0: vec4f, sum1: vec4f, sum2: vec4f, sum3: vec4f) {
    let odd = (place.part & 1u) != 0u;
    let low = select(sum0, sum1, odd) + subgroupShuffleXor(select(sum1, sum0, odd), 4u);
    let high = select(sum2, sum3, odd) + subgroupShuffleXor(select(sum3, sum2, odd), 4u);
    let line = first + (place.part & 1u);
    if TOGETHER == 2u {
        if line < LINES { memory[sum_at(place, line)] = low; }
        if line + 2u < LINES { memory[sum_at(place, line + 2u)] = high; }
        return;
    }
    let upper = (place.part & 2u) != 0u;
    var sum = select(low, high, upper) + subgroupShuffleXor(select(high, low, upper), 8u);
    for (var mask = 16u; mask < 4u * TOGETHER; mask *= 2u) { sum += subgroupShuffleXor(sum, mask); }
    let own = line + (place.part & 2u);
    if place.part % TOGETHER < 4u && own < LINES { memory[sum_at(place, own)] = sum; }
}
