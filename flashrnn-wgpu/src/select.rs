//! Sizes of tiles, parts and dispatches, as pure functions.

use std::ops::Range;

use flashrnn_core::Shapes;

/// The most workgroups along one dimension that every device takes.
pub const GROUPS_X: usize = 65535;

/// The rounds of a loop that every driver runs to their end: some (Mesa 22.3's lavapipe) end it silently after 65,535.
pub const LONGEST_LOOP: usize = 32768;

/// The most rounds of a kernel's loop: those of the backward pass's product, with the smallest [`chunk`].
pub fn longest_loop(shapes: &Shapes) -> usize {
    shapes.head_dim.div_ceil(4) * shapes.recurrent
}

/// Elements of k that a product brings to workgroup memory at a time, for a cell with this many recurrent gates; `None` where
/// even the fewest take more than `workgroup_bytes`.
pub fn chunk(recurrent: usize, workgroup_bytes: usize) -> Option<usize> {
    [32, 16, 8, 4]
        .into_iter()
        .find(|chunk| (recurrent + 1) * 16 * (chunk + 1) * size_of::<f32>() <= workgroup_bytes)
}

/// The elements that partial sums take, unless one part takes more.
const MOST_PARTIAL: usize = 1 << 24;

/// A sum over tokens in parts: how many, and the tokens of each. `columns` is what one part takes, in elements, and `round` the
/// tokens that one round of the kernel's loop adds.
pub fn parts(tokens: usize, columns: usize, round: usize) -> (usize, usize) {
    let most = (MOST_PARTIAL / columns.max(1)).clamp(1, 64);
    let length = tokens.div_ceil(most).clamp(256, LONGEST_LOOP * round);
    (tokens.div_ceil(length), length)
}

/// The tokens of a round of `weight_gradient` and of `bias_gradient`.
pub const GRADIENT_ROUNDS: [usize; 2] = [16, 1];

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

/// A dispatch of so many workgroups, in two dimensions.
pub fn dispatch(groups: usize) -> [u32; 3] {
    [groups.min(GROUPS_X) as u32, groups.div_ceil(GROUPS_X) as u32, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_fit_workgroup_memory() {
        assert_eq!(chunk(4, 16384), Some(32));
        assert_eq!(chunk(8, 16384), Some(16));
        assert_eq!(chunk(1000, 16384), None);
        for recurrent in 1..32 {
            let chunk = chunk(recurrent, 16384).unwrap();
            assert!((recurrent + 1) * 16 * (chunk + 1) * 4 <= 16384);
        }
    }

    #[test]
    fn parts_cover_all_tokens() {
        for tokens in [0, 1, 255, 256, 257, 100_000, 10_000_000] {
            for columns in [1, 1 << 16, 1 << 26] {
                for round in GRADIENT_ROUNDS {
                    let (parts, length) = parts(tokens, columns, round);
                    assert!(parts * length >= tokens && (parts == 0 || (parts - 1) * length < tokens));
                    assert!(length <= LONGEST_LOOP * round);
                }
            }
        }
    }

    #[test]
    fn gates_of_few_steps_at_a_time() {
        assert_eq!(gates_steps(0, 4), 1);
        assert_eq!(gates_steps(100, 4), 100);
        assert_eq!(gates_steps(100, 1 << 20), 16);
        assert_eq!(gates_steps(100, 1 << 30), 1);
        let ranges = |time, steps| from_the_last(time, steps).map(|r| (r.start, r.end)).collect::<Vec<_>>();
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
