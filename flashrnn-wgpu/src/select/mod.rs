//! Pure functions that choose the kernels of a problem, and the sizes of tiles, parts and
//! dispatches.

use std::ops::Range;

use flashrnn_core::{Dtype, Shapes};
use flashrnn_gpu::Family;

mod adapter;
pub mod choice;
mod fused;
pub mod limits;
mod step;
mod weight_grad;

#[cfg(test)]
pub(crate) use adapter::examples;
pub use adapter::{Adapter, MAX_LOOP, subgroup};
pub use fused::{FUSED_STEPS, Fused, Lines, piece};
pub use step::{STEP_ROWS, STEP_UNITS, Tile, chunk, longest_loop, step_groups};
pub use weight_grad::{BIAS_GRAD, GradTile, Round, WEIGHT_GRAD, matrix_width, parts};

/// The kernels that a [`Wgpu`](crate::Wgpu) was asked to use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Preferences {
    pub family: Family,
    /// For tests and measurements: used in place of the choice of [`Fused::new`].
    pub fused: Option<Fused>,
    /// For tests: whether a driver that runs on the CPU gets the kernels of a GPU.
    pub as_on_gpus: bool,
}

impl Preferences {
    /// Returns the adapter that kernels are chosen for.
    pub fn adapter(self, adapter: Adapter) -> Adapter {
        Adapter { cpu: adapter.cpu && !self.as_on_gpus, ..adapter }
    }

    /// Returns the fused kernels for a problem, or `None` for per-step kernels.
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

/// Maximum number of workgroups along one dimension on every device.
pub const MAX_GROUPS_X: usize = 65535;

/// Returns the size of a dispatch of at least `groups` workgroups, in two dimensions.
pub fn dispatch(groups: usize) -> [u32; 3] {
    [groups.min(MAX_GROUPS_X) as u32, groups.div_ceil(MAX_GROUPS_X) as u32, 1]
}

/// Returns the numbers of 4-word pieces of the packed weights: those of every plan, and those of
/// the fused kernels.
pub fn packed(shapes: &Shapes, fused: Option<Fused>, narrow: bool) -> [usize; 2] {
    let lines = shapes.recurrent * shapes.heads * shapes.head_dim;
    let step = 2 * lines * shapes.head_dim.div_ceil(4)
        + (shapes.gates * shapes.heads * shapes.head_dim).div_ceil(4);
    [step, fused.map_or(0, |fused| 2 * shapes.heads * fused.pieces(shapes, piece(narrow)))]
}

/// Maximum number of elements of recomputed gates, unless one step has more.
const MAX_RECOMPUTED: usize = 1 << 24;

/// Returns the maximum number of time steps whose gates are recomputed at a time. A step has
/// `step_len` gates.
pub fn recomputed_steps(time: usize, step_len: usize) -> usize {
    (MAX_RECOMPUTED / step_len.max(1)).clamp(1, time.max(1))
}

/// Splits `time` steps into ranges of at most `steps`, from the last to the first. Returns one
/// empty range if there are no steps.
pub fn ranges_from_last(time: usize, steps: usize) -> impl Iterator<Item = Range<usize>> {
    let steps = steps.max(1);
    (0..time.div_ceil(steps).max(1)).rev().map(move |i| i * steps..time.min((i + 1) * steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_recomputed_for_a_few_steps_at_a_time() {
        assert_eq!(recomputed_steps(0, 4), 1);
        assert_eq!(recomputed_steps(100, 4), 100);
        assert_eq!(recomputed_steps(100, 1 << 20), 16);
        assert_eq!(recomputed_steps(100, 1 << 30), 1);
        let ranges = |time, steps| {
            ranges_from_last(time, steps).map(|r| (r.start, r.end)).collect::<Vec<_>>()
        };
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
