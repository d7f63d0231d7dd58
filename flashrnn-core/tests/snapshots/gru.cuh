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
    // What backward needs of s_(t-1) and g_t.
    static constexpr int RESIDUALS = 5;
    static __device__ __forceinline__ void linearize(const float (&s)[1], const float (&g)[4], float (&residuals)[5]) {
        const float s_h = s[0];
        const float g_n_h = g[0];
        const float g_r = g[1];
        const float g_z = g[2];
        const float g_n_x = g[3];
        const float v1 = real::sigmoid(g_r);
        const float v2 = real::sigmoid_slope(g_r);
        const float v3 = real::sigmoid(g_z);
        const float v4 = real::sigmoid_slope(g_z);
        const float v5 = v1 * g_n_h;
        const float v6 = g_n_x + v5;
        const float v7 = real::tanh(v6);
        const float v8 = real::tanh_slope(v6);
        const float v9 = 1.0f - v3;
        const float v10 = v9 * v8;
        const float v11 = g_n_h * v2;
        const float v12 = s_h - v7;
        const float v13 = v12 * v4;
        residuals[0] = v1;
        residuals[1] = v3;
        residuals[2] = v10;
        residuals[3] = v11;
        residuals[4] = v13;
    }
    // The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
    static __device__ __forceinline__ void backward(const float (&residuals)[5], const float (&d)[1], float (&ds)[1], float (&dg)[4]) {
        const float d_h = d[0];
        const float residuals_0 = residuals[0];
        const float residuals_1 = residuals[1];
        const float residuals_2 = residuals[2];
        const float residuals_3 = residuals[3];
        const float residuals_4 = residuals[4];
        const float v1 = d_h * residuals_2;
        const float v2 = v1 * residuals_3;
        const float v3 = d_h * residuals_4;
        const float v4 = d_h * residuals_1;
        const float v5 = v1 * residuals_0;
        ds[0] = v4;
        dg[0] = v5;
        dg[1] = v2;
        dg[2] = v3;
        dg[3] = v1;
    }
};
