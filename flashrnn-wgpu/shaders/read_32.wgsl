@group(0) @binding(BINDING) var<storage, read> TENSOR: array<u32>;
fn load_TENSOR(i: u32) -> f32 { return bitcast<f32>(TENSOR[params.TENSOR_first + i]); }
// Elements i and i + 1.
fn load2_TENSOR(i: u32) -> vec2f { return vec2f(load_TENSOR(i), load_TENSOR(i + 1u)); }
