//! Which kernels run a problem, and sizes of tiles, parts and dispatches: pure functions.

use std::ops::Range;

use flashrnn_core::{Dtype, Shapes};
use flashrnn_gpu::Family;

mod adapter;
pub mod choice;
mod fused;
mod gradient;
pub mod limits;
mod step;

#[cfg(test)]
pub(crate) use adapter::examples;
pub use adapter::{Adapter, subgroup};
pub use fused::{FUSED_STEPS, Fused, Lines, piece};
pub use gradient::{GRADIENT_ROUNDS, Gradient, matrix_width, parts};
pub use step::{STEP_ROWS, STEP_UNITS, Tile, chunk, longest_loop, step_groups};

/// Which kernels a [`Wgpu`](crate::Wgpu) was told to take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    pub family: Family,
    /// For tests and measurements: in place of what [`Fused::new`] chooses.
    pub fused: Option<Fused>,
    /// For tests: on a CPU's drivers too, the kernels that only GPUs get otherwise.
    pub as_on_gpus: bool,
}

impl Choice {
    /// What kernels are chosen for.
    pub fn adapter(self, adapter: Adapter) -> Adapter {
        Adapter { cpu: adapter.cpu && !self.as_on_gpus, ..adapter }
    }

    /// The fused kernels for a problem, or `None` for the alternating ones.
    pub fn fused(self, shapes: &Shapes, adapter: Adapter, element: Dtype) -> Option<Fused> {
        match self.family {
            Family::Alternating => None,
            Family::Auto | Family::Fused => self
                .fused
                .filter(|fused| fused.units >= shapes.head_dim)
                .or_else(|| Fused::new(shapes, adapter, element)),
        }
    }
}

/// The most workgroups along one dimension that every device takes.
pub const GROUPS_X: usize = 65535;

/// The rounds of a loop that every driver runs to their end: some (Mesa 22.3's lavapipe) end it
/// silently after 65,535.
pub const LONGEST_LOOP: usize = 32768;

/// A dispatch of so many workgroups, in two dimensions.
pub fn dispatch(groups: usize) -> [u32; 3] {
    [groups.min(GROUPS_X) as u32, groups.div_ceil(GROUPS_X) as u32, 1]
}

/// The pieces, of 4 words, of the packed weights: those that every plan has, and those of the fused
/// kernels.
pub fn packed(shapes: &Shapes, fused: Option<Fused>, narrow: bool) -> [usize; 2] {
    let lines = shapes.recurrent * shapes.heads * shapes.head_dim;
    let plain = 2 * lines * shapes.head_dim.div_ceil(4)
        + (shapes.gates * shapes.heads * shapes.head_dim).div_ceil(4);
    [plain, fused.map_or(0, |fused| 2 * shapes.heads * fused.pieces(shapes, piece(narrow)))]
}

/// The elements that gates computed again take, unless one step takes more.
const MOST_GATES: usize = 1 << 24;

/// The most time steps whose gates are computed again at a time. A step has `step` of them.
pub fn gates_steps(time: usize, step: usize) -> usize {
    (MOST_GATES / step.max(1)).clamp(1, time.max(1))
}

/// All steps in ranges of at most `steps`, the last first; one that is empty where there are none.
pub fn from_the_last(time: usize, steps: usize) -> impl Iterator<Item = Range<usize>> {
    let steps = steps.max(1);
    (0..time.div_ceil(steps).max(1)).rev().map(move |i| i * steps..time.min((i + 1) * steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_of_few_steps_at_a_time() {
        assert_eq!(gates_steps(0, 4), 1);
        assert_eq!(gates_steps(100, 4), 100);
        assert_eq!(gates_steps(100, 1 << 20), 16);
        assert_eq!(gates_steps(100, 1 << 30), 1);
        let ranges =
            |time, steps| from_the_last(time, steps).map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(ranges(7, 3), [(6, 7), (3, 6), (0, 3)]);
        assert_eq!(ranges(6, 3), [(3, 6), (0, 3)]);
        assert_eq!(ranges(2, 3), [(0, 2)]);
        assert_eq!(ranges(0, 3), [(0, 0)]);
    }

    #[test]
    fn dispatches_cover_all_groups() {
        for groups in [0, 1, 65535, 65536, 1_000_000] {
            let [x, y, z] = dispatch(groups);
            assert!(x as usize * y as usize * z as usize >= groups && x <= 65535 && y <= 65535);
        }
    }
}
