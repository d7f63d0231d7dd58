// Cell `lstm`, printed from its Rust definition.
struct Cell {
    static constexpr int STATES = 2, GATES = 4, RECURRENT = 4, EXTERNAL = 4;
    // states: h, c; gates: i, f, z, o
    static_assert(STATES <= 32 && GATES <= 32, "a bit set holds 32");
    // WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
    static constexpr unsigned WIDE = 0x0, WIDE_GATES = 0x0, CONSTANT = 0x0;
    // s_t = P(s_(t-1), g_t)
    static __device__ __forceinline__ void forward(const float (&s)[2], const float (&g)[4], float (&next)[2]) {
        const float s_c = s[1];
        const float g_i = g[0];
        const float g_f = g[1];
        const float g_z = g[2];
        const float g_o = g[3];
        const float v1 = real::sigmoid(g_f);
        const float v2 = v1 * s_c;
        const float v3 = real::sigmoid(g_i);
        const float v4 = real::tanh(g_z);
        const float v5 = v3 * v4;
        const float v6 = v2 + v5;
        const float v7 = real::sigmoid(g_o);
        const float v8 = real::tanh(v6);
        const float v9 = v7 * v8;
        next[0] = v9;
        next[1] = v6;
    }
    // What backward needs of s_(t-1) and g_t.
    static constexpr int RESIDUALS = 6;
    static __device__ __forceinline__ void linearize(const float (&s)[2], const float (&g)[4], float (&residuals)[6]) {
        const float s_c = s[1];
        const float g_i = g[0];
        const float g_f = g[1];
        const float g_z = g[2];
        const float g_o = g[3];
        const float v1 = real::sigmoid(g_i);
        const float v2 = real::sigmoid_slope(g_i);
        const float v3 = real::sigmoid(g_f);
        const float v4 = real::sigmoid_slope(g_f);
        const float v5 = real::tanh(g_z);
        const float v6 = real::tanh_slope(g_z);
        const float v7 = real::sigmoid(g_o);
        const float v8 = real::sigmoid_slope(g_o);
        const float v9 = v3 * s_c;
        const float v10 = v1 * v5;
        const float v11 = v9 + v10;
        const float v12 = real::tanh(v11);
        const float v13 = real::tanh_slope(v11);
        const float v14 = v7 * v13;
        const float v15 = v5 * v2;
        const float v16 = s_c * v4;
        const float v17 = v1 * v6;
        const float v18 = v12 * v8;
        residuals[0] = v3;
        residuals[1] = v14;
        residuals[2] = v15;
        residuals[3] = v16;
        residuals[4] = v17;
        residuals[5] = v18;
    }
    // The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
    static __device__ __forceinline__ void backward(const float (&residuals)[6], const float (&d)[2], float (&ds)[2], float (&dg)[4]) {
        const float d_h = d[0];
        const float d_c = d[1];
        const float residuals_0 = residuals[0];
        const float residuals_1 = residuals[1];
        const float residuals_2 = residuals[2];
        const float residuals_3 = residuals[3];
        const float residuals_4 = residuals[4];
        const float residuals_5 = residuals[5];
        const float v1 = d_h * residuals_1;
        const float v2 = d_c + v1;
        const float v3 = v2 * residuals_2;
        const float v4 = v2 * residuals_3;
        const float v5 = v2 * residuals_4;
        const float v6 = d_h * residuals_5;
        const float v7 = v2 * residuals_0;
        ds[0] = 0.0f;
        ds[1] = v7;
        dg[0] = v3;
        dg[1] = v4;
        dg[2] = v5;
        dg[3] = v6;
    }
};
