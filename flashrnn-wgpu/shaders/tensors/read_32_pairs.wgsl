// Used if D is even, so that the last element is the second of a pair.
@group(0) @binding(BINDING) var<storage, ACCESS> TENSOR: array<u32>;
fn load_TENSOR(i: u32) -> f32 { return bitcast<f32>(TENSOR[params.TENSOR_first + i]); }
// Loads elements i and i + 1 without converting them.
fn fetch2_TENSOR(i: u32) -> vec2u {
    return vec2u(TENSOR[params.TENSOR_first + i], TENSOR[params.TENSOR_first + i + 1u]);
}
fn load2_TENSOR(i: u32) -> vec2f { return bitcast<vec2f>(fetch2_TENSOR(i)); }
