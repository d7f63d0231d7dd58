@group(0) @binding(BINDING) var<storage, read> TENSOR: array<u32>;
fn load_TENSOR(i: u32) -> f32 {
    let at = params.TENSOR_first + i;
    return widen_FORMAT((TENSOR[at / 2u] >> (at % 2u * 16u)) & 0xffffu);
}
// Elements i and i + 1.
fn load2_TENSOR(i: u32) -> vec2f {
    let at = params.TENSOR_first + i;
    let low = TENSOR[at / 2u];
    let high = TENSOR[(at + 1u) / 2u];
    return vec2f(
        widen_FORMAT((low >> (at % 2u * 16u)) & 0xffffu), widen_FORMAT((high >> ((at + 1u) % 2u * 16u)) & 0xffffu));
}
