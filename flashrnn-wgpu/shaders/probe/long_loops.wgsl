// A loop of `params.time` rounds with a result that no compiler can know without them (xorshift): a
// driver that ends long loops silently gives another one.
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
