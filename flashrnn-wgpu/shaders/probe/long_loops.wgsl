// Runs a loop of `params.time` iterations whose result no compiler can predict (xorshift). A driver
// that silently ends long loops returns another value.
@compute @workgroup_size(1)
fn long_loops() {
    var value = 1u;
    for (var i = 0u; i < params.time; i++) {
        value ^= value << 13u;
        value ^= value >> 17u;
        value ^= value << 5u;
    }
    result[0] = value;
}
