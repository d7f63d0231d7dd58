//! The arguments of the time loops. Each struct is copied to the kernels byte by byte; [`header`]
//! prints them as `call.cuh`, which the kernels include.

use flashrnn_gpu::arguments;

/// An address in device memory; 0 means none.
pub type Address = u64;

arguments! {
    /// Sizes and options. kernels/operator.cuh defines this struct too, with methods.
    pub struct Sizes {
        batch: i32,
        time: i32,
        heads: i32,
        head_dim: i32,
        /// D rounded up to whole chunks: the row length of packed weights and exchanged h.
        depth: i32,
        /// 1 if tokens are `[T, B]`, 0 if they are `[B, T]`.
        time_major: i32,
        /// 1 if time runs backwards, from each row's own end.
        reverse: i32,
    }
}

arguments! {
    /// A tensor of all gates, in two parts. kernels/operator.cuh defines this struct too, with
    /// methods.
    pub struct Gates {
        /// `[tokens, Gx, N, D]`; with `-DINTERLEAVED=1` all gates, `[tokens, N, D, G]`.
        external: Address,
        /// `[tokens, G - Gx, N, D]`
        inner: Address,
    }
}

arguments! {
    /// The arguments of a forward pass.
    pub struct ForwardCall {
        sizes: Sizes,
        /// The time step of the graph's first kernel.
        first_step: i32,
        save_gates: i32,
        /// Infinity if there is none.
        forward_clip: f32,
        /// `[Gr, N, D, depth]`
        r: Address as "const T*",
        /// `[G, N, D]`
        b: Address as "const float*",
        /// `[tokens, Gx, N, D]`
        wx: Address as "const T*",
        /// `[S, B, N, D]` or null.
        s0: Address as "const float*",
        /// `[B]` or null.
        lengths: Address as "const int*",
        /// `[tokens]` or null.
        resets: Address as "const unsigned char*",
        /// `[2, B, N, depth]`: h, padded with zeros. In grid kernels, words with h.
        exchange: Address as "T*",
        /// `[S, B, N, D]`: the states, updated in place. After the last step they are the final
        /// states.
        state: Address as "float*",
        /// `[tokens, N, D]` or null.
        h: Address as "T*",
        /// `[S, tokens, N, D]` or null.
        states: Address as "T*",
        /// Written if `save_gates` is set.
        gates: Gates as "Gates<T>",
        /// `[WIDE, tokens, N, D]` or null.
        wide_states: Address as "float*",
        /// `[WIDE_GATES, tokens, N, D]` or null.
        wide_gates: Address as "float*",
    }
}

arguments! {
    /// The arguments of a backward pass.
    pub struct BackwardCall {
        sizes: Sizes,
        /// T - 1 minus the time step of the graph's first kernel.
        first_step: i32,
        /// The number of states in `d_states`: 0, 1 (`d_h` alone) or S.
        d_states_count: i32,
        cut_recurrent_grad: i32,
        /// Infinity if there is none.
        forward_clip: f32,
        /// Infinity if there is none.
        recurrent_grad_clip: f32,
        /// `[N, D_in, Gr, depth]`: R transposed.
        r: Address as "const T*",
        /// `[S, B, N, D]` or null.
        s0: Address as "const float*",
        /// `[B]` or null.
        lengths: Address as "const int*",
        /// `[tokens]` or null.
        resets: Address as "const unsigned char*",
        /// `[S, tokens, N, D]`
        states: Address as "const T*",
        gates: Gates as "Gates<const T>",
        /// `[WIDE, tokens, N, D]` or null.
        wide_states: Address as "const float*",
        /// `[WIDE_GATES, tokens, N, D]` or null.
        wide_gates: Address as "const float*",
        /// `[d_states_count, tokens, N, D]`
        d_states: Address as "const T*",
        /// `[S, B, N, D]` or null.
        d_last: Address as "const float*",
        /// `[2, B, N, Gr, depth]`: dg of the recurrent gates, padded with zeros. In grid kernels,
        /// words with dg.
        exchange: Address as "T*",
        /// `[S, B, N, D]`: the gradient of the states, updated in place.
        d_state: Address as "float*",
        /// d_wx, and dg of the gates without external input.
        d_gates: Gates as "Gates<T>",
        /// `[S, B, N, D]` or null.
        d_s0: Address as "float*",
    }
}

arguments! {
    /// What a grid kernel does if it waits too long.
    pub struct Watch {
        /// Nanoseconds, or 0 to wait forever.
        limit: u64 as "unsigned long long",
        /// A number in host memory: `kernel`, the block shifted by 2 bits, and the exchange that it
        /// waited for shifted by 32 bits.
        report: Address as "unsigned long long*",
        /// Identifies the kernel in `report`: 1 for forward, 2 for backward.
        kernel: u32,
        padding: u32,
    }
}

/// Returns the text of `call.cuh`: the structs of both calls, and checks of the two structs that
/// the kernels define themselves.
pub(crate) fn header() -> String {
    [
        "#pragma once\n".into(),
        "#include \"cell.cuh\"\n#include \"element.cuh\"\n#include \"operator.cuh\"\n".into(),
        Sizes::STRUCT.cuda_checks("Sizes"),
        Gates::STRUCT.cuda_checks("Gates<T>"),
        ForwardCall::STRUCT.cuda(),
        BackwardCall::STRUCT.cuda(),
        Watch::STRUCT.cuda(),
    ]
    .concat()
}
