// Cell `gru`, printed from its Rust definition.
struct Cell {
    static constexpr int STATES = 1, GATES = 4, RECURRENT = 3, EXTERNAL = 3;
    // states: h; gates: n_h, r, z, n_x
    static_assert(STATES <= 32 && GATES <= 32, "a bit set holds 32");
    // Bit sets of states, gates and states.
    static constexpr unsigned WIDE = 0x0, WIDE_GATES = 0x0, CONSTANT = 0x0;
    // s_t = P(s_(t-1), g_t)
    static __device__ __forceinline__ void forward(const float (&s)[1], const float (&g)[4], float (&next)[1]) {
        const float s_h = s[0];
        const float g_n_h = g[0];
        const float g_r = g[1];
        const float g_z = g[2];
        const float g_n_x = g[3];
        const float v1 = real::sigmoid(g_r);
        const float v2 = real::sigmoid(g_z);
        const float v3 = v1 * g_n_h;
        const float v4 = g_n_x + v3;
        const float v5 = real::tanh(v4);
        const float v6 = v2 * s_h;
        const float v7 = 1.0f - v2;
        const float v8 = v7 * v5;
        const float v9 = v6 + v8;
        next[0] = v9;
    }
    // The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
    static __device__ __forceinline__ void backward(const float (&s)[1], const float (&g)[4], const float (&d)[1], float (&ds)[1], float (&dg)[4]) {
        const float s_h = s[0];
        const float g_n_h = g[0];
        const float g_r = g[1];
        const float g_z = g[2];
        const float g_n_x = g[3];
        const float d_h = d[0];
        const float v1 = real::sigmoid(g_r);
        const float v2 = real::sigmoid_slope(g_r);
        const float v3 = real::sigmoid(g_z);
        const float v4 = real::sigmoid_slope(g_z);
        const float v5 = v1 * g_n_h;
        const float v6 = g_n_x + v5;
        const float v7 = real::tanh(v6);
        const float v8 = real::tanh_slope(v6);
        const float v9 = 1.0f - v3;
        const float v10 = d_h * v9;
        const float v11 = v10 * v8;
        const float v12 = v11 * g_n_h;
        const float v13 = v12 * v2;
        const float v14 = s_h - v7;
        const float v15 = d_h * v14;
        const float v16 = v15 * v4;
        const float v17 = d_h * v3;
        const float v18 = v11 * v1;
        ds[0] = v17;
        dg[0] = v18;
        dg[1] = v13;
        dg[2] = v16;
        dg[3] = v11;
    }
};
