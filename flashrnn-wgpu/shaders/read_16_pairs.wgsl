// Where D is even, and the tensor begins at an even element: whole words.
@group(0) @binding(BINDING) var<storage, read> TENSOR: array<u32>;
fn fetch2_TENSOR(i: u32) -> vec2u { return vec2u(TENSOR[(params.TENSOR_first + i) / 2u], 0u); }
fn load2_TENSOR(i: u32) -> vec2f { return widen2_FORMAT(fetch2_TENSOR(i)); }
