const STATES = 1u;
const GATES = 3u;
const RECURRENT = 2u;
const EXTERNAL = 2u;
// WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
const WIDE = 0x0u;
const WIDE_GATES = 0x0u;
const CONSTANT = 0x0u;

// Cell `minimal_gated`, printed from its Rust definition.
// states: h; gates: n_h, f, n_x

// s_t = P(s_(t-1), g_t)
fn cell_forward(s: array<f32, 1>, g: array<f32, 3>) -> array<f32, 1> {
    var next: array<f32, 1>;
    let s_h: f32 = s[0];
    let g_n_h: f32 = g[0];
    let g_f: f32 = g[1];
    let g_n_x: f32 = g[2];
    let v1: f32 = real_sigmoid(g_f);
    let v2: f32 = v1 * g_n_h;
    let v3: f32 = g_n_x + v2;
    let v4: f32 = real_tanh(v3);
    let v5: f32 = 1.0f - v1;
    let v6: f32 = v5 * s_h;
    let v7: f32 = v1 * v4;
    let v8: f32 = v6 + v7;
    next[0] = v8;
    return next;
}

struct CellGradients {
    ds: array<f32, 1>,
    dg: array<f32, 3>,
}

// The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
fn cell_backward(s: array<f32, 1>, g: array<f32, 3>, d: array<f32, 1>) -> CellGradients {
    var ds: array<f32, 1>;
    var dg: array<f32, 3>;
    let s_h: f32 = s[0];
    let g_n_h: f32 = g[0];
    let g_f: f32 = g[1];
    let g_n_x: f32 = g[2];
    let d_h: f32 = d[0];
    let v1: f32 = real_sigmoid(g_f);
    let v2: f32 = real_sigmoid_slope(g_f);
    let v3: f32 = v1 * g_n_h;
    let v4: f32 = g_n_x + v3;
    let v5: f32 = real_tanh(v4);
    let v6: f32 = real_tanh_slope(v4);
    let v7: f32 = 1.0f - v1;
    let v8: f32 = d_h * v5;
    let v9: f32 = d_h * v1;
    let v10: f32 = d_h * s_h;
    let v11: f32 = d_h * v7;
    let v12: f32 = v8 - v10;
    let v13: f32 = v9 * v6;
    let v14: f32 = v13 * g_n_h;
    let v15: f32 = v13 * v1;
    let v16: f32 = v12 + v14;
    let v17: f32 = v16 * v2;
    ds[0] = v11;
    dg[0] = v15;
    dg[1] = v17;
    dg[2] = v13;
    return CellGradients(ds, dg);
}
