@group(0) @binding(BINDING) var<storage, read> TENSOR: array<u32>;
fn load_TENSOR(i: u32) -> f32 { return bitcast<f32>(TENSOR[params.TENSOR_first + i]); }
