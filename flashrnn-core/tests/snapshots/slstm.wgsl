const STATES = 4u;
const GATES = 4u;
const RECURRENT = 4u;
const EXTERNAL = 4u;
// Bit sets of states, gates and states.
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
    let v1: f32 = real_min(g_f, 0.0f);
    let v2: f32 = real_softplus_neg_abs(g_f);
    let v3: f32 = v1 - v2;
    let v4: f32 = v3 + s_m;
    let v5: bool = s_n > 0.0f;
    let v6: f32 = real_max(g_i, v4);
    let v7: f32 = select(g_i, v6, v5);
    let v8: f32 = g_i - v7;
    let v9: f32 = real_exp(v8);
    let v10: f32 = v4 - v7;
    let v11: f32 = real_min(v10, 0.0f);
    let v12: f32 = real_exp(v11);
    let v13: f32 = real_tanh(g_z);
    let v14: f32 = v12 * s_c;
    let v15: f32 = v9 * v13;
    let v16: f32 = v14 + v15;
    let v17: f32 = v12 * s_n;
    let v18: f32 = v17 + v9;
    let v19: f32 = real_max(v18, 1.0f);
    let v20: f32 = real_sigmoid(g_o);
    let v21: f32 = real_quotient(v16, v19);
    let v22: f32 = v20 * v21;
    next[0] = v22;
    next[1] = v16;
    next[2] = v19;
    next[3] = v7;
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
    let v1: f32 = real_min(g_f, 0.0f);
    let v2: f32 = real_softplus_neg_abs(g_f);
    let v3: f32 = v1 - v2;
    let v4: f32 = -g_f;
    let v5: f32 = real_sigmoid(v4);
    let v6: f32 = v3 + s_m;
    let v7: bool = s_n > 0.0f;
    let v8: f32 = real_max(g_i, v6);
    let v9: f32 = select(g_i, v8, v7);
    let v10: f32 = g_i - v9;
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
    let v24: f32 = real_quotient(v22, v21);
    let v25: f32 = d_h * v24;
    let v26: f32 = d_c + v25;
    let v27: f32 = v25 * v23;
    let v28: f32 = d_n - v27;
    let v29: f32 = v26 * v15;
    let v30: f32 = v29 + v28;
    let v31: f32 = v30 * v11;
    let v32: f32 = v26 * s_c;
    let v33: f32 = v28 * s_n;
    let v34: f32 = v32 + v33;
    let v35: f32 = v14 * v5;
    let v36: f32 = v34 * v35;
    let v37: f32 = real_tanh_slope(g_z);
    let v38: f32 = v11 * v37;
    let v39: f32 = v26 * v38;
    let v40: f32 = real_sigmoid_slope(g_o);
    let v41: f32 = v23 * v40;
    let v42: f32 = d_h * v41;
    let v43: f32 = v26 * v14;
    let v44: f32 = v28 * v14;
    ds[0] = 0.0f;
    ds[1] = v43;
    ds[2] = v44;
    ds[3] = 0.0f;
    dg[0] = v31;
    dg[1] = v36;
    dg[2] = v39;
    dg[3] = v42;
    return CellGradients(ds, dg);
}
