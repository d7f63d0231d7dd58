const STATES = 2u;
const GATES = 4u;
const RECURRENT = 4u;
const EXTERNAL = 4u;
// WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
const WIDE = 0x0u;
const WIDE_GATES = 0x0u;
const CONSTANT = 0x0u;

// Cell `lstm`, printed from its Rust definition.
// states: h, c; gates: i, f, z, o

// s_t = P(s_(t-1), g_t)
fn cell_forward(s: array<f32, 2>, g: array<f32, 4>) -> array<f32, 2> {
    var next: array<f32, 2>;
    let s_c: f32 = s[1];
    let g_i: f32 = g[0];
    let g_f: f32 = g[1];
    let g_z: f32 = g[2];
    let g_o: f32 = g[3];
    let v1: f32 = real_sigmoid(g_f);
    let v2: f32 = v1 * s_c;
    let v3: f32 = real_sigmoid(g_i);
    let v4: f32 = real_tanh(g_z);
    let v5: f32 = v3 * v4;
    let v6: f32 = v2 + v5;
    let v7: f32 = real_sigmoid(g_o);
    let v8: f32 = real_tanh(v6);
    let v9: f32 = v7 * v8;
    next[0] = v9;
    next[1] = v6;
    return next;
}

struct CellGradients {
    ds: array<f32, 2>,
    dg: array<f32, 4>,
}

// The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
fn cell_backward(s: array<f32, 2>, g: array<f32, 4>, d: array<f32, 2>) -> CellGradients {
    var ds: array<f32, 2>;
    var dg: array<f32, 4>;
    let s_c: f32 = s[1];
    let g_i: f32 = g[0];
    let g_f: f32 = g[1];
    let g_z: f32 = g[2];
    let g_o: f32 = g[3];
    let d_h: f32 = d[0];
    let d_c: f32 = d[1];
    let v1: f32 = real_sigmoid(g_i);
    let v2: f32 = real_sigmoid_slope(g_i);
    let v3: f32 = real_sigmoid(g_f);
    let v4: f32 = real_sigmoid_slope(g_f);
    let v5: f32 = real_tanh(g_z);
    let v6: f32 = real_tanh_slope(g_z);
    let v7: f32 = real_sigmoid(g_o);
    let v8: f32 = real_sigmoid_slope(g_o);
    let v9: f32 = v3 * s_c;
    let v10: f32 = v1 * v5;
    let v11: f32 = v9 + v10;
    let v12: f32 = real_tanh(v11);
    let v13: f32 = real_tanh_slope(v11);
    let v14: f32 = v7 * v13;
    let v15: f32 = d_h * v14;
    let v16: f32 = d_c + v15;
    let v17: f32 = v5 * v2;
    let v18: f32 = v16 * v17;
    let v19: f32 = s_c * v4;
    let v20: f32 = v16 * v19;
    let v21: f32 = v1 * v6;
    let v22: f32 = v16 * v21;
    let v23: f32 = v12 * v8;
    let v24: f32 = d_h * v23;
    let v25: f32 = v16 * v3;
    ds[0] = 0.0f;
    ds[1] = v25;
    dg[0] = v18;
    dg[1] = v20;
    dg[2] = v22;
    dg[3] = v24;
    return CellGradients(ds, dg);
}
