//! The arguments of the kernels, and the layout of the memory that they work in.

use flashrnn_core::Shapes;
use flashrnn_gpu::arguments;

arguments! {
    /// The arguments of every kernel, a uniform buffer. Flags are 0 or 1.
    pub struct Params {
        batch: u32,
        time: u32,
        heads: u32,
        head_dim: u32,
        time_major: u32,
        reverse: u32,
        /// The backward pass counts its steps from the last one.
        first_step: u32,
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
        parts: u32,
        part_tokens: u32,
        accumulate: u32,
        /// Columns of the sums that `reduce` adds.
        row_length: u32,
        /// First step of the recomputed gates.
        gates_step: u32,
        /// Number of steps of the recomputed gates.
        gates_steps: u32,
        // Offsets of the regions of `work`, in words.
        lengths_at: u32,
        resets_at: u32,
        s0_at: u32,
        carried_at: u32,
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
        /// Always 0, which the compiler does not know; for `opaque` in math.wgsl.
        zero: u32,
        /// Rounds the size up to a multiple of 16, as a uniform buffer needs.
        pad: u32,
    }
}

const _: () = assert!(size_of::<Params>().is_multiple_of(16));

impl Params {
    /// Lays out `work` of a forward pass; returns its words.
    pub fn lay_out_forward(&mut self, shapes: &Shapes) -> usize {
        let mut layout = WorkLayout::default();
        self.lengths_at = layout.add(shapes.batch);
        self.resets_at = layout.add(shapes.tokens().div_ceil(4));
        self.carried_at = layout.add(2 * state(shapes));
        layout.words()
    }

    /// Lays out `work` of a backward pass; returns its words.
    pub fn lay_out_backward(&mut self, shapes: &Shapes) -> usize {
        let (step, state) = (shapes.batch * shapes.units(), state(shapes));
        let mut layout = WorkLayout::default();
        self.lengths_at = layout.add(shapes.batch);
        self.resets_at = layout.add(shapes.tokens().div_ceil(4));
        self.s0_at = layout.add(state);
        self.d_last_at = layout.add(state);
        self.d_s0_at = layout.add(state);
        self.carried_at = layout.add(state);
        self.exchange_at = layout.add(2 * shapes.recurrent * step);
        self.inner_at = layout.add(shapes.inner() * shapes.time * step);
        layout.words()
    }
}

/// The elements of all rows' states at one step.
pub fn state(shapes: &Shapes) -> usize {
    shapes.state().iter().product()
}

/// The parts of `work`, one after another.
#[derive(Default)]
struct WorkLayout(usize);

impl WorkLayout {
    /// Makes room for 32-bit words; returns where they begin.
    fn add(&mut self, words: usize) -> u32 {
        let at = self.0;
        self.0 += words;
        // `plan` refuses what does not fit.
        at as u32
    }

    /// All words, and one that is read with the last unit of an odd number of them, and thrown
    /// away.
    fn words(self) -> usize {
        self.0 + 1
    }
}
