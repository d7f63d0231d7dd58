//! The arguments of the kernels, as they read them.

use bytemuck::{Pod, Zeroable};
use flashrnn_core::Shapes;

/// `Params` of shaders/params.wgsl, where each field's meaning stands. Flags are 0 or 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Params {
    pub batch: u32,
    pub time: u32,
    pub heads: u32,
    pub head_dim: u32,
    pub time_major: u32,
    pub reverse: u32,
    pub first_step: u32,
    pub end_step: u32,
    pub has_lengths: u32,
    pub has_resets: u32,
    pub has_s0: u32,
    pub has_d_last: u32,
    pub has_h: u32,
    pub has_states: u32,
    pub saves_gates: u32,
    pub saves_wide: u32,
    pub d_states_count: u32,
    pub clips_forward: u32,
    pub clips_gradient: u32,
    pub cut_recurrent_grad: u32,
    pub forward_clip: f32,
    pub recurrent_grad_clip: f32,
    pub parts: u32,
    pub part_tokens: u32,
    pub accumulate: u32,
    pub row_length: u32,
    pub gates_step: u32,
    pub gates_steps: u32,
    pub lengths_at: u32,
    pub resets_at: u32,
    pub s0_at: u32,
    pub carried_at: u32,
    pub exchange_at: u32,
    pub inner_at: u32,
    pub d_last_at: u32,
    pub d_s0_at: u32,
    pub r_first: u32,
    pub b_first: u32,
    pub wx_first: u32,
    pub h_first: u32,
    pub states_first: u32,
    pub gates_first: u32,
    pub wide_first: u32,
    pub d_states_first: u32,
    pub d_wx_first: u32,
    pub out_first: u32,
    pub zero: u32,
    pub pad: u32,
}

const _: () = assert!(size_of::<Params>().is_multiple_of(16), "a uniform buffer's size");

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
