// The arguments of a pass, as the Rust structs of the same names give them (call.rs). The fused
// kernels take them by value; the kernels of single steps find them in device memory, so that a
// graph serves any buffers and any T.
#pragma once
#include "cell.cuh"
#include "element.cuh"
#include "operator.cuh"

// The arguments of a forward pass.
struct ForwardCall {
    Sizes sizes;
    int first_step;                 // the step of the graph's first kernel
    int save_gates;
    float forward_clip;             // infinity for none
    const T* r;                     // [Gr, N, D, depth]
    const float* b;                 // [G, N, D]
    const T* wx;                    // [tokens, Gx, N, D]
    const float* s0;                // [S, B, N, D] or null
    const int* lengths;             // [B] or null
    const unsigned char* resets;    // [tokens] or null
    T* exchange;                    // [2, B, N, depth]: h, padded with zeros
    float* carried;                 // [S, B, N, D]: the states, at the end those that each row ends in
    T* h;                           // [tokens, N, D] or null
    T* states;                      // [S, tokens, N, D] or null
    Gates<T> gates;                 // written with save_gates; -DINTERLEAVED: external is [tokens, N, D, G]
    float* wide_states;             // [WIDE, tokens, N, D] or null
    float* wide_gates;              // [WIDE_GATES, tokens, N, D] or null
};

static_assert(sizeof(ForwardCall) == FORWARD_CALL_BYTES, "differs from the struct of the same name in call.rs");

// The arguments of a backward pass.
struct BackwardCall {
    Sizes sizes;
    int first_step;               // T - 1 - the step of the graph's first kernel
    int d_states_count;           // how many states d_states holds: 0, 1 (d_h alone) or S
    int cut_recurrent_grad;
    float forward_clip, recurrent_grad_clip;  // infinity for none
    const T* r;                   // [N, D_in, Gr, depth]: R transposed
    const float* s0;              // [S, B, N, D] or null
    const int* lengths;           // [B] or null
    const unsigned char* resets;  // [tokens] or null
    const T* states;              // [S, tokens, N, D]
    Gates<const T> gates;         // -DINTERLEAVED: external is [tokens, N, D, G]
    const float* wide_states;     // [WIDE, tokens, N, D] or null
    const float* wide_gates;      // [WIDE_GATES, tokens, N, D] or null
    const T* d_states;            // [d_states_count, tokens, N, D]
    const float* d_last;          // [S, B, N, D] or null
    T* exchange;                  // [2, B, N, Gr, depth]: dg of the recurrent gates, padded with zeros
    float* carried;               // [S, B, N, D]: the gradient of the states
    Gates<T> d_gates;             // d_wx, and what takes no external input
    float* d_s0;                  // [S, B, N, D] or null
};

static_assert(sizeof(BackwardCall) == BACKWARD_CALL_BYTES, "differs from the struct of the same name in call.rs");
