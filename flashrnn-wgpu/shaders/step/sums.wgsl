// Stores the sums of a per-step product (product.wgsl) without subgroup operations.

struct Builtins { @builtin(local_invocation_index) thread: u32 }

fn thread_of(builtins: Builtins) -> u32 { return builtins.thread; }

// Stores the sums of lines `first` to `first + AT_ONCE - 1` in workgroup memory.
fn store_sums(place: Place, sums: array<vec4f, PADDED_LINES>, first: u32) {
    //@ for $line in 0..LINES
    if first <= $lineu && $lineu < first + AT_ONCE {
        memory[sum_at(place, $lineu - first)] = sums[$line];
    }
    //@ end
}
