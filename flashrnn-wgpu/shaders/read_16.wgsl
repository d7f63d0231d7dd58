@group(0) @binding(BINDING) var<storage, read> TENSOR: array<u32>;
fn load_TENSOR(i: u32) -> f32 {
    let at = params.TENSOR_first + i;
    return widen_FORMAT((TENSOR[at / 2u] >> (at % 2u * 16u)) & 0xffffu);
}
