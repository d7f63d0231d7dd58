// Cell `gru`, printed from its Rust definition.
struct Cell {
    static constexpr int STATES = 1, GATES = 4, RECURRENT = 3, EXTERNAL = 3;
    // states: h; gates: n_h, r, z, n_x
    static_assert(STATES <= 32 && GATES <= 32, "a bit set holds 32");
    // WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
    static constexpr unsigned WIDE = 0x0, WIDE_GATES = 0x0, CONSTANT = 0x0;
    // s_t = P(s_(t-1), g_t)
    static __device__ __forceinline__ void forward(const float (&s)[1], const float (&g)[4], float (&next)[1]) {
        const float s_h = s[0];
        const float g_n_h = g[0];
        const float g_r = g[1];
        const float g_z = g[2];
        const float g_n_x = g[3];
        const float v1 = real::max(g_n_h, -3.4028235e38f);
        const float v2 = real::min(v1, 3.4028235e38f);
        const float v3 = real::sigmoid(g_r);
        const float v4 = real::sigmoid(g_z);
        const float v5 = v3 * v2;
        const float v6 = g_n_x + v5;
        const float v7 = real::tanh(v6);
        const float v8 = v4 * s_h;
        const float v9 = 1.0f - v4;
        const float v10 = v9 * v7;
        const float v11 = v8 + v10;
        next[0] = v11;
    }
    // What backward needs of s_(t-1) and g_t.
    static constexpr int RESIDUALS = 5;
    static __device__ __forceinline__ void linearize(const float (&s)[1], const float (&g)[4], float (&residuals)[5]) {
        const float s_h = s[0];
        const float g_n_h = g[0];
        const float g_r = g[1];
        const float g_z = g[2];
        const float g_n_x = g[3];
        const float v1 = real::max(g_n_h, -3.4028235e38f);
        const float v2 = real::min(v1, 3.4028235e38f);
        const float v3 = real::sigmoid(g_r);
        const float v4 = real::sigmoid_slope(g_r);
        const float v5 = real::sigmoid(g_z);
        const float v6 = real::sigmoid_slope(g_z);
        const float v7 = v3 * v2;
        const float v8 = g_n_x + v7;
        const float v9 = real::tanh(v8);
        const float v10 = real::tanh_slope(v8);
        const float v11 = 1.0f - v5;
        const float v12 = v11 * v10;
        const float v13 = v2 * v4;
        const float v14 = s_h - v9;
        const float v15 = v14 * v6;
        residuals[0] = v3;
        residuals[1] = v5;
        residuals[2] = v12;
        residuals[3] = v13;
        residuals[4] = v15;
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
