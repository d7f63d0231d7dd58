//! The arguments of the kernels, in uniform buffers. The structs are printed as WGSL when a program
//! is joined.

use flashrnn_gpu::arguments;

arguments! {
    /// The arguments of every kernel. Flags are 0 or 1.
    pub struct Params {
        batch: u32,
        time: u32,
        heads: u32,
        head_dim: u32,
        time_major: u32,
        reverse: u32,
        /// First step of the dispatches; the backward pass counts from the last step.
        first_step: u32,
        /// End of the steps, exclusive.
        end_step: u32,
        has_lengths: u32,
        has_resets: u32,
        has_s0: u32,
        has_d_last: u32,
        has_h: u32,
        has_states: u32,
        saves_gates: u32,
        saves_wide: u32,
        /// Number of states in `d_states`: 0, 1 (`d_h` alone) or S.
        d_states_count: u32,
        clips_forward: u32,
        clips_gradient: u32,
        cut_recurrent_grad: u32,
        forward_clip: f32,
        recurrent_grad_clip: f32,
        /// Parts that a sum over tokens is split into.
        parts: u32,
        /// Tokens of a part.
        part_tokens: u32,
        /// Whether `reduce` adds to the contents of `out`.
        accumulate: u32,
        /// Columns of the sums that `reduce` adds.
        row_length: u32,
        /// First step of the recomputed gates.
        gates_step: u32,
        /// Number of steps of the recomputed gates.
        gates_steps: u32,
        // Offsets of the tensors in `work`, in words (layout.rs).
        lengths_at: u32,
        resets_at: u32,
        s0_at: u32,
        state_at: u32,
        exchange_at: u32,
        inner_at: u32,
        d_last_at: u32,
        d_s0_at: u32,
        // First elements of the tensors in their bindings.
        r_first: u32,
        b_first: u32,
        wx_first: u32,
        h_first: u32,
        states_first: u32,
        gates_first: u32,
        wide_first: u32,
        d_states_first: u32,
        d_wx_first: u32,
        out_first: u32,
        /// Always 0, which the compiler cannot know. `opaque` in math.wgsl uses it.
        zero: u32,
        /// Rounds the size up to a multiple of 16, as a uniform buffer needs.
        pad: u32,
    }
}

arguments! {
    /// The index of a dispatch among those of one call of `Recorder::run_steps`.
    pub struct Step {
        index: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

// Keeps the sizes of uniform buffers multiples of 16 bytes.
const _: () = assert!(size_of::<Params>().is_multiple_of(16) && size_of::<Step>() == 16);
