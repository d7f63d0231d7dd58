//! The layout of scratch memory: regions of a workspace, and tensors in the region `work`.

use flashrnn_core::{Shapes, Workspace};

use crate::call::Params;

/// Alignment of a workspace and of the regions in it, in bytes. No device requires a larger
/// alignment of a binding's offset.
pub(crate) const ALIGN: usize = 256;

/// Returns the size and alignment of a workspace that holds regions of the sizes `regions`, in
/// bytes, one after another.
pub(crate) fn workspace(regions: &[usize]) -> Workspace {
    let bytes = regions.iter().fold(0usize, |sum, &bytes| sum.saturating_add(region_bytes(bytes)));
    Workspace { bytes, align: ALIGN }
}

/// Returns the size of a region in bytes. It is at least [`ALIGN`], so that an empty region can be
/// bound.
pub(crate) fn region_bytes(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(ALIGN)
}

/// Returns the number of elements of all rows' states at one step.
pub(crate) fn state_len(shapes: &Shapes) -> usize {
    shapes.state().iter().product()
}

impl Params {
    /// Lays out the tensors of a forward pass in `work` by setting their offsets. Returns the size
    /// of `work` in words.
    pub fn lay_out_forward(&mut self, shapes: &Shapes) -> usize {
        let mut layout = WorkLayout::default();
        self.lengths_at = layout.add(shapes.batch);
        self.resets_at = layout.add(shapes.tokens().div_ceil(4));
        self.state_at = layout.add(2 * state_len(shapes));
        layout.words()
    }

    /// Lays out the tensors of a backward pass in `work` by setting their offsets. Returns the size
    /// of `work` in words.
    pub fn lay_out_backward(&mut self, shapes: &Shapes) -> usize {
        let (step, state) = (shapes.batch * shapes.units(), state_len(shapes));
        let mut layout = WorkLayout::default();
        self.lengths_at = layout.add(shapes.batch);
        self.resets_at = layout.add(shapes.tokens().div_ceil(4));
        self.s0_at = layout.add(state);
        self.d_last_at = layout.add(state);
        self.d_s0_at = layout.add(state);
        self.state_at = layout.add(state);
        self.exchange_at = layout.add(2 * shapes.recurrent * step);
        self.inner_at = layout.add(shapes.inner() * shapes.time * step);
        layout.words()
    }
}

/// The number of words of `work` that are assigned so far.
#[derive(Default)]
struct WorkLayout(usize);

impl WorkLayout {
    /// Appends a tensor of 32-bit words. Returns its offset.
    fn add(&mut self, words: usize) -> u32 {
        let at = self.0;
        self.0 += words;
        // `check_limits` refuses sizes that do not fit.
        at as u32
    }

    /// Returns the number of words of all tensors, plus one, because the last of an odd number of
    /// units is read together with the word after it.
    fn words(self) -> usize {
        self.0 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_begin_where_they_can_be_bound() {
        assert_eq!(
            workspace(&[0, 1, 256, 257]),
            Workspace { bytes: 256 * (1 + 1 + 1 + 2), align: 256 }
        );
    }
}
