@group(0) @binding(BINDING) var<storage, read_write> TENSOR: array<u32>;
fn load_TENSOR(i: u32) -> f32 { return bitcast<f32>(TENSOR[params.TENSOR_first + i]); }
fn store_TENSOR(i: u32, x: f32) { TENSOR[params.TENSOR_first + i] = bitcast<u32>(x); }
// Stores element i and, if `both` is set, element i + 1.
fn store2_TENSOR(i: u32, x: vec2f, both: bool) {
    store_TENSOR(i, x.x);
    if both { store_TENSOR(i + 1u, x.y); }
}
