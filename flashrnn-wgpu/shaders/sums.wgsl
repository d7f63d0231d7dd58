// Sums of the threads of a step's product (step.wgsl) where nothing is known of subgroups.

struct Builtins { @builtin(local_invocation_index) thread: u32 }

fn thread_of(builtins: Builtins) -> u32 { return builtins.thread; }

// Brings the sums of lines `first` to `first + AT_ONCE - 1` to memory.
fn keep(place: Place, sums: array<vec4f, HELD>, first: u32) {
    //@ for $line in 0..LINES
    if first <= $lineu && $lineu < first + AT_ONCE { memory[sum_at(place, $lineu - first)] = sums[$line]; }
    //@ end
}
