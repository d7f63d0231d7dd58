@group(0) @binding(BINDING) var<storage, ACCESS> TENSOR: array<u32>;
fn load_TENSOR(i: u32) -> f32 {
    let at = params.TENSOR_first + i;
    return widen_FORMAT((TENSOR[at / 2u] >> (at % 2u * 16u)) & 0xffffu);
}
// Loads elements i and i + 1 without converting them. Beyond the last element the value is
// unspecified.
fn fetch2_TENSOR(i: u32) -> vec2u {
    let at = params.TENSOR_first + i;
    let low = TENSOR[at / 2u] >> (at % 2u * 16u);
    let high = TENSOR[min((at + 1u) / 2u, arrayLength(&TENSOR) - 1u)] >> ((at + 1u) % 2u * 16u);
    return vec2u((low & 0xffffu) | (high << 16u), 0u);
}
fn load2_TENSOR(i: u32) -> vec2f { return widen2_FORMAT(fetch2_TENSOR(i)); }
