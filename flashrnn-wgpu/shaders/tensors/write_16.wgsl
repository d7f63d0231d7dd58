// Two threads may write the halves of one word, so each clears and sets its own half atomically.
@group(0) @binding(BINDING) var<storage, read_write> TENSOR: array<atomic<u32>>;
fn load_TENSOR(i: u32) -> f32 {
    let at = params.TENSOR_first + i;
    return widen_FORMAT((atomicLoad(&TENSOR[at / 2u]) >> (at % 2u * 16u)) & 0xffffu);
}
fn store_TENSOR(i: u32, x: f32) {
    let at = params.TENSOR_first + i;
    let shift = at % 2u * 16u;
    atomicAnd(&TENSOR[at / 2u], ~(0xffffu << shift));
    atomicOr(&TENSOR[at / 2u], ROUND_FORMAT(x) << shift);
}
// Stores element i and, if `both` is set, element i + 1.
fn store2_TENSOR(i: u32, x: vec2f, both: bool) {
    let at = params.TENSOR_first + i;
    if both && at % 2u == 0u {
        atomicStore(&TENSOR[at / 2u], ROUND_FORMAT(x.x) | (ROUND_FORMAT(x.y) << 16u));
        return;
    }
    store_TENSOR(i, x.x);
    if both { store_TENSOR(i + 1u, x.y); }
}
