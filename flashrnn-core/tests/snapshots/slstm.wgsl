const STATES = 4u;
const GATES = 4u;
const RECURRENT = 4u;
const EXTERNAL = 4u;
// WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
const WIDE = 0x8u;
const WIDE_GATES = 0x3u;
const CONSTANT = 0x8u;

// Cell `slstm`, printed from its Rust definition.
// states: h, c, n, m; gates: i, f, z, o

// s_t = P(s_(t-1), g_t)
fn cell_forward(s: array<f32, 4>, g: array<f32, 4>) -> array<f32, 4> {
    var next: array<f32, 4>;
    let s_c: f32 = s[1];
    let s_n: f32 = s[2];
    let s_m: f32 = s[3];
    let g_i: f32 = g[0];
    let g_f: f32 = g[1];
    let g_z: f32 = g[2];
    let g_o: f32 = g[3];
    let v1: f32 = real_max(g_i, -3.4028235e38f);
    let v2: f32 = real_min(v1, 3.4028235e38f);
    let v3: f32 = real_min(g_f, 0.0f);
    let v4: f32 = real_softplus_neg_abs(g_f);
    let v5: f32 = v3 - v4;
    let v6: f32 = v5 + s_m;
    let v7: bool = s_n > 0.0f;
    let v8: f32 = real_max(v2, v6);
    let v9: f32 = select(v2, v8, v7);
    let v10: f32 = v2 - v9;
    let v11: f32 = real_exp(v10);
    let v12: f32 = v6 - v9;
    let v13: f32 = real_min(v12, 0.0f);
    let v14: f32 = real_exp(v13);
    let v15: f32 = real_tanh(g_z);
    let v16: f32 = v14 * s_c;
    let v17: f32 = v11 * v15;
    let v18: f32 = v16 + v17;
    let v19: f32 = v14 * s_n;
    let v20: f32 = v19 + v11;
    let v21: f32 = real_max(v20, 1.0f);
    let v22: f32 = real_sigmoid(g_o);
    let v23: f32 = real_quotient(v18, v21);
    let v24: f32 = v22 * v23;
    next[0] = v24;
    next[1] = v18;
    next[2] = v21;
    next[3] = v9;
    return next;
}

struct CellGradients {
    ds: array<f32, 4>,
    dg: array<f32, 4>,
}

// The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
fn cell_backward(s: array<f32, 4>, g: array<f32, 4>, d: array<f32, 4>) -> CellGradients {
    var ds: array<f32, 4>;
    var dg: array<f32, 4>;
    let s_c: f32 = s[1];
    let s_n: f32 = s[2];
    let s_m: f32 = s[3];
    let g_i: f32 = g[0];
    let g_f: f32 = g[1];
    let g_z: f32 = g[2];
    let g_o: f32 = g[3];
    let d_h: f32 = d[0];
    let d_c: f32 = d[1];
    let d_n: f32 = d[2];
    let v1: f32 = real_max(g_i, -3.4028235e38f);
    let v2: f32 = real_min(v1, 3.4028235e38f);
    let v3: f32 = real_min(g_f, 0.0f);
    let v4: f32 = real_softplus_neg_abs(g_f);
    let v5: f32 = v3 - v4;
    let v6: f32 = -g_f;
    let v7: f32 = real_sigmoid(v6);
    let v8: f32 = v5 + s_m;
    let v9: bool = s_n > 0.0f;
    let v10: f32 = real_max(v2, v8);
    let v11: f32 = select(v2, v10, v9);
    let v12: f32 = v2 - v11;
    let v13: f32 = real_exp(v12);
    let v14: f32 = v8 - v11;
    let v15: f32 = real_min(v14, 0.0f);
    let v16: f32 = real_exp(v15);
    let v17: f32 = real_tanh(g_z);
    let v18: f32 = v16 * s_c;
    let v19: f32 = v13 * v17;
    let v20: f32 = v18 + v19;
    let v21: f32 = v16 * s_n;
    let v22: f32 = v21 + v13;
    let v23: f32 = real_max(v22, 1.0f);
    let v24: f32 = real_sigmoid(g_o);
    let v25: f32 = real_quotient(v20, v23);
    let v26: f32 = real_quotient(v24, v23);
    let v27: f32 = d_h * v26;
    let v28: f32 = d_c + v27;
    let v29: f32 = v27 * v25;
    let v30: f32 = d_n - v29;
    let v31: f32 = v28 * v17;
    let v32: f32 = v31 + v30;
    let v33: f32 = v32 * v13;
    let v34: f32 = v28 * s_c;
    let v35: f32 = v30 * s_n;
    let v36: f32 = v34 + v35;
    let v37: f32 = v16 * v7;
    let v38: f32 = v36 * v37;
    let v39: f32 = real_tanh_slope(g_z);
    let v40: f32 = v13 * v39;
    let v41: f32 = v28 * v40;
    let v42: f32 = real_sigmoid_slope(g_o);
    let v43: f32 = v25 * v42;
    let v44: f32 = d_h * v43;
    let v45: f32 = v28 * v16;
    let v46: f32 = v30 * v16;
    ds[0] = 0.0f;
    ds[1] = v45;
    ds[2] = v46;
    ds[3] = 0.0f;
    dg[0] = v33;
    dg[1] = v38;
    dg[2] = v41;
    dg[3] = v44;
    return CellGradients(ds, dg);
}
