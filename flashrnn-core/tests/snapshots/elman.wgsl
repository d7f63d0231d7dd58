const STATES = 1u;
const GATES = 1u;
const RECURRENT = 1u;
const EXTERNAL = 1u;
// WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
const WIDE = 0x0u;
const WIDE_GATES = 0x0u;
const CONSTANT = 0x0u;

// Cell `elman`, printed from its Rust definition.
// states: h; gates: g

// s_t = P(s_(t-1), g_t)
fn cell_forward(s: array<f32, 1>, g: array<f32, 1>) -> array<f32, 1> {
    var next: array<f32, 1>;
    let g_g: f32 = g[0];
    let v1: f32 = real_tanh(g_g);
    next[0] = v1;
    return next;
}

struct CellGradients {
    ds: array<f32, 1>,
    dg: array<f32, 1>,
}

// The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
fn cell_backward(s: array<f32, 1>, g: array<f32, 1>, d: array<f32, 1>) -> CellGradients {
    var ds: array<f32, 1>;
    var dg: array<f32, 1>;
    let g_g: f32 = g[0];
    let d_h: f32 = d[0];
    let v1: f32 = real_tanh_slope(g_g);
    let v2: f32 = d_h * v1;
    ds[0] = 0.0f;
    dg[0] = v2;
    return CellGradients(ds, dg);
}
