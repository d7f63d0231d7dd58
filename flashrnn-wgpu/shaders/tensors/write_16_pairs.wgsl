// Used if D is even and the tensor begins at an even element, so that pairs are whole words, each
// written by one thread.
@group(0) @binding(BINDING) var<storage, read_write> TENSOR: array<u32>;
fn store2_TENSOR(i: u32, x: vec2f, both: bool) {
    TENSOR[(params.TENSOR_first + i) / 2u] = ROUND_FORMAT(x.x) | (ROUND_FORMAT(x.y) << 16u);
}
