@group(0) @binding(BINDING) var<storage, ACCESS> TENSOR: array<u32>;
fn load_TENSOR(i: u32) -> f32 { return bitcast<f32>(TENSOR[params.TENSOR_first + i]); }
// Loads elements i and i + 1 without converting them. Beyond the last element the value is
// unspecified.
fn fetch2_TENSOR(i: u32) -> vec2u {
    let at = params.TENSOR_first + i;
    return vec2u(TENSOR[at], TENSOR[min(at + 1u, arrayLength(&TENSOR) - 1u)]);
}
fn load2_TENSOR(i: u32) -> vec2f { return bitcast<vec2f>(fetch2_TENSOR(i)); }
