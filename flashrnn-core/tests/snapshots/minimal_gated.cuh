// Cell `minimal_gated`, printed from its Rust definition.
struct Cell {
    static constexpr int STATES = 1, GATES = 3, RECURRENT = 2, EXTERNAL = 2;
    // states: h; gates: n_h, f, n_x
    static_assert(STATES <= 32 && GATES <= 32, "a bit set holds 32");
    // WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
    static constexpr unsigned WIDE = 0x0, WIDE_GATES = 0x0, CONSTANT = 0x0;
    // s_t = P(s_(t-1), g_t)
    static __device__ __forceinline__ void forward(const float (&s)[1], const float (&g)[3], float (&next)[1]) {
        const float s_h = s[0];
        const float g_n_h = g[0];
        const float g_f = g[1];
        const float g_n_x = g[2];
        const float v1 = real::sigmoid(g_f);
        const float v2 = v1 * g_n_h;
        const float v3 = g_n_x + v2;
        const float v4 = real::tanh(v3);
        const float v5 = 1.0f - v1;
        const float v6 = v5 * s_h;
        const float v7 = v1 * v4;
        const float v8 = v6 + v7;
        next[0] = v8;
    }
    // What backward needs of s_(t-1) and g_t.
    static constexpr int RESIDUALS = 7;
    static __device__ __forceinline__ void linearize(const float (&s)[1], const float (&g)[3], float (&residuals)[7]) {
        const float s_h = s[0];
        const float g_n_h = g[0];
        const float g_f = g[1];
        const float g_n_x = g[2];
        const float v1 = real::sigmoid(g_f);
        const float v2 = real::sigmoid_slope(g_f);
        const float v3 = v1 * g_n_h;
        const float v4 = g_n_x + v3;
        const float v5 = real::tanh(v4);
        const float v6 = real::tanh_slope(v4);
        const float v7 = 1.0f - v1;
        residuals[0] = s_h;
        residuals[1] = g_n_h;
        residuals[2] = v1;
        residuals[3] = v2;
        residuals[4] = v5;
        residuals[5] = v6;
        residuals[6] = v7;
    }
    // The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
    static __device__ __forceinline__ void backward(const float (&residuals)[7], const float (&d)[1], float (&ds)[1], float (&dg)[3]) {
        const float residuals_0 = residuals[0];
        const float residuals_1 = residuals[1];
        const float d_h = d[0];
        const float residuals_2 = residuals[2];
        const float residuals_3 = residuals[3];
        const float residuals_4 = residuals[4];
        const float residuals_5 = residuals[5];
        const float residuals_6 = residuals[6];
        const float v1 = d_h * residuals_4;
        const float v2 = d_h * residuals_2;
        const float v3 = d_h * residuals_0;
        const float v4 = d_h * residuals_6;
        const float v5 = v1 - v3;
        const float v6 = v2 * residuals_5;
        const float v7 = v6 * residuals_1;
        const float v8 = v6 * residuals_2;
        const float v9 = v5 + v7;
        const float v10 = v9 * residuals_3;
        ds[0] = v4;
        dg[0] = v8;
        dg[1] = v10;
        dg[2] = v6;
    }
};
