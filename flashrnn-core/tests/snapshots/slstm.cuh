// Cell `slstm`, printed from its Rust definition.
struct Cell {
    static constexpr int STATES = 4, GATES = 4, RECURRENT = 4, EXTERNAL = 4;
    // states: h, c, n, m; gates: i, f, z, o
    static_assert(STATES <= 32 && GATES <= 32, "a bit set holds 32");
    // WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
    static constexpr unsigned WIDE = 0x8, WIDE_GATES = 0x3, CONSTANT = 0x8;
    // s_t = P(s_(t-1), g_t)
    static __device__ __forceinline__ void forward(const float (&s)[4], const float (&g)[4], float (&next)[4]) {
        const float s_c = s[1];
        const float s_n = s[2];
        const float s_m = s[3];
        const float g_i = g[0];
        const float g_f = g[1];
        const float g_z = g[2];
        const float g_o = g[3];
        const float v1 = real::max(g_i, -3.4028235e38f);
        const float v2 = real::min(v1, 3.4028235e38f);
        const float v3 = real::min(g_f, 0.0f);
        const float v4 = real::softplus_neg_abs(g_f);
        const float v5 = v3 - v4;
        const float v6 = v5 + s_m;
        const bool v7 = s_n > 0.0f;
        const float v8 = real::max(v2, v6);
        const float v9 = v7 ? v8 : v2;
        const float v10 = v2 - v9;
        const float v11 = real::exp(v10);
        const float v12 = v6 - v9;
        const float v13 = real::min(v12, 0.0f);
        const float v14 = real::exp(v13);
        const float v15 = real::tanh(g_z);
        const float v16 = v14 * s_c;
        const float v17 = v11 * v15;
        const float v18 = v16 + v17;
        const float v19 = v14 * s_n;
        const float v20 = v19 + v11;
        const float v21 = real::max(v20, 1.0f);
        const float v22 = real::sigmoid(g_o);
        const float v23 = v18 / v21;
        const float v24 = v22 * v23;
        next[0] = v24;
        next[1] = v18;
        next[2] = v21;
        next[3] = v9;
    }
    // What backward needs of s_(t-1) and g_t.
    static constexpr int RESIDUALS = 10;
    static __device__ __forceinline__ void linearize(const float (&s)[4], const float (&g)[4], float (&residuals)[10]) {
        const float s_c = s[1];
        const float s_n = s[2];
        const float s_m = s[3];
        const float g_i = g[0];
        const float g_f = g[1];
        const float g_z = g[2];
        const float g_o = g[3];
        const float v1 = real::max(g_i, -3.4028235e38f);
        const float v2 = real::min(v1, 3.4028235e38f);
        const float v3 = real::min(g_f, 0.0f);
        const float v4 = real::softplus_neg_abs(g_f);
        const float v5 = v3 - v4;
        const float v6 = -g_f;
        const float v7 = real::sigmoid(v6);
        const float v8 = v5 + s_m;
        const bool v9 = s_n > 0.0f;
        const float v10 = real::max(v2, v8);
        const float v11 = v9 ? v10 : v2;
        const float v12 = v2 - v11;
        const float v13 = real::exp(v12);
        const float v14 = v8 - v11;
        const float v15 = real::min(v14, 0.0f);
        const float v16 = real::exp(v15);
        const float v17 = real::tanh(g_z);
        const float v18 = v16 * s_c;
        const float v19 = v13 * v17;
        const float v20 = v18 + v19;
        const float v21 = v16 * s_n;
        const float v22 = v21 + v13;
        const float v23 = real::max(v22, 1.0f);
        const float v24 = real::sigmoid(g_o);
        const float v25 = v20 / v23;
        const float v26 = v24 / v23;
        const float v27 = v16 * v7;
        const float v28 = real::tanh_slope(g_z);
        const float v29 = v13 * v28;
        const float v30 = real::sigmoid_slope(g_o);
        const float v31 = v25 * v30;
        residuals[0] = s_c;
        residuals[1] = s_n;
        residuals[2] = v13;
        residuals[3] = v16;
        residuals[4] = v17;
        residuals[5] = v25;
        residuals[6] = v26;
        residuals[7] = v27;
        residuals[8] = v29;
        residuals[9] = v31;
    }
    // The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
    static __device__ __forceinline__ void backward(const float (&residuals)[10], const float (&d)[4], float (&ds)[4], float (&dg)[4]) {
        const float residuals_0 = residuals[0];
        const float residuals_1 = residuals[1];
        const float d_h = d[0];
        const float d_c = d[1];
        const float d_n = d[2];
        const float residuals_2 = residuals[2];
        const float residuals_3 = residuals[3];
        const float residuals_4 = residuals[4];
        const float residuals_5 = residuals[5];
        const float residuals_6 = residuals[6];
        const float residuals_7 = residuals[7];
        const float residuals_8 = residuals[8];
        const float residuals_9 = residuals[9];
        const float v1 = d_h * residuals_6;
        const float v2 = d_c + v1;
        const float v3 = v1 * residuals_5;
        const float v4 = d_n - v3;
        const float v5 = v2 * residuals_4;
        const float v6 = v5 + v4;
        const float v7 = v6 * residuals_2;
        const float v8 = v2 * residuals_0;
        const float v9 = v4 * residuals_1;
        const float v10 = v8 + v9;
        const float v11 = v10 * residuals_7;
        const float v12 = v2 * residuals_8;
        const float v13 = d_h * residuals_9;
        const float v14 = v2 * residuals_3;
        const float v15 = v4 * residuals_3;
        ds[0] = 0.0f;
        ds[1] = v14;
        ds[2] = v15;
        ds[3] = 0.0f;
        dg[0] = v7;
        dg[1] = v11;
        dg[2] = v12;
        dg[3] = v13;
    }
};
