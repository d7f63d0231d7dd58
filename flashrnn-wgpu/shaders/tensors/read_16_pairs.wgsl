// Used if D is even and the tensor begins at an even element, so that pairs are whole words.
@group(0) @binding(BINDING) var<storage, ACCESS> TENSOR: array<u32>;
fn load_TENSOR(i: u32) -> f32 {
    let at = params.TENSOR_first + i;
    return widen_FORMAT((TENSOR[at / 2u] >> (at % 2u * 16u)) & 0xffffu);
}
fn fetch2_TENSOR(i: u32) -> vec2u { return vec2u(TENSOR[(params.TENSOR_first + i) / 2u], 0u); }
fn load2_TENSOR(i: u32) -> vec2f { return widen2_FORMAT(fetch2_TENSOR(i)); }
