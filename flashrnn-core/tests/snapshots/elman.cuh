// Cell `elman`, printed from its Rust definition.
struct Cell {
    static constexpr int STATES = 1, GATES = 1, RECURRENT = 1, EXTERNAL = 1;
    // states: h; gates: g
    static_assert(STATES <= 32 && GATES <= 32, "a bit set holds 32");
    // WIDE and CONSTANT are bit sets of states; WIDE_GATES is one of gates.
    static constexpr unsigned WIDE = 0x0, WIDE_GATES = 0x0, CONSTANT = 0x0;
    // s_t = P(s_(t-1), g_t)
    static __device__ __forceinline__ void forward(const float (&s)[1], const float (&g)[1], float (&next)[1]) {
        const float g_g = g[0];
        const float v1 = real::tanh(g_g);
        next[0] = v1;
    }
    // What backward needs of s_(t-1) and g_t.
    static constexpr int RESIDUALS = 1;
    static __device__ __forceinline__ void linearize(const float (&s)[1], const float (&g)[1], float (&residuals)[1]) {
        const float g_g = g[0];
        const float v1 = real::tanh_slope(g_g);
        residuals[0] = v1;
    }
    // The gradients ds of s_(t-1) and dg of g_t, from the gradient d of s_t.
    static __device__ __forceinline__ void backward(const float (&residuals)[1], const float (&d)[1], float (&ds)[1], float (&dg)[1]) {
        const float d_h = d[0];
        const float residuals_0 = residuals[0];
        const float v1 = d_h * residuals_0;
        ds[0] = 0.0f;
        dg[0] = v1;
    }
};
