const STATES = 1u;
const GATES = 4u;
const RECURRENT = 3u;
const EXTERNAL = 3u;
// WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
const WIDE = 0x0u;
const WIDE_GATES = 0x0u;
const CONSTANT = 0x0u;

// Cell `gru`, printed from its Rust definition.
// states: h; gates: n_h, r, z, n_x

// s_t = P(s_(t-1), g_t)
fn cell_forward(s: array<f32, 1>, g: array<f32, 4>) -> array<f32, 1> {
    var next: array<f32, 1>;
    let s_h: f32 = s[0];
    let g_n_h: f32 = g[0];
    let g_r: f32 = g[1];
    let g_z: f32 = g[2];
    let g_n_x: f32 = g[3];
    let v1: f32 = real_max(g_n_h, -3.4028235e38f);
    let v2: f32 = real_min(v1, 3.4028235e38f);
    let v3: f32 = real_sigmoid(g_r);
    let v4: f32 = real_sigmoid(g_z);
    let v5: f32 = v3 * v2;
    let v6: f32 = g_n_x + v5;
    let v7: f32 = real_tanh(v6);
    let v8: f32 = v4 * s_h;
    let v9: f32 = 1.0f - v4;
    let v10: f32 = v9 * v7;
    let v11: f32 = v8 + v10;
    next[0] = v11;
    return next;
}

struct CellGradients {
    ds: array<f32, 1>,
    dg: array<f32, 4>,
}

// The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
fn cell_backward(s: array<f32, 1>, g: array<f32, 4>, d: array<f32, 1>) -> CellGradients {
    var ds: array<f32, 1>;
    var dg: array<f32, 4>;
    let s_h: f32 = s[0];
    let g_n_h: f32 = g[0];
    let g_r: f32 = g[1];
    let g_z: f32 = g[2];
    let g_n_x: f32 = g[3];
    let d_h: f32 = d[0];
    let v1: f32 = real_max(g_n_h, -3.4028235e38f);
    let v2: f32 = real_min(v1, 3.4028235e38f);
    let v3: f32 = real_sigmoid(g_r);
    let v4: f32 = real_sigmoid_slope(g_r);
    let v5: f32 = real_sigmoid(g_z);
    let v6: f32 = real_sigmoid_slope(g_z);
    let v7: f32 = v3 * v2;
    let v8: f32 = g_n_x + v7;
    let v9: f32 = real_tanh(v8);
    let v10: f32 = real_tanh_slope(v8);
    let v11: f32 = 1.0f - v5;
    let v12: f32 = v11 * v10;
    let v13: f32 = d_h * v12;
    let v14: f32 = v2 * v4;
    let v15: f32 = v13 * v14;
    let v16: f32 = s_h - v9;
    let v17: f32 = v16 * v6;
    let v18: f32 = d_h * v17;
    let v19: f32 = d_h * v5;
    let v20: f32 = v13 * v3;
    ds[0] = v19;
    dg[0] = v20;
    dg[1] = v15;
    dg[2] = v18;
    dg[3] = v13;
    return CellGradients(ds, dg);
}
