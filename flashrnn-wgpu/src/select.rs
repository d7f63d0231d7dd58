//! Sizes of tiles, parts and dispatches, as pure functions.

/// The most workgroups along one dimension that every device takes.
pub const GROUPS_X: usize = 65535;

/// No loop of a kernel runs more often than this: some drivers (Mesa 22.3's lavapipe) end a loop silently after 65,535 rounds.
pub const LONGEST_LOOP: usize = 32768;

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
    fn dispatches_cover_all_groups() {
        for groups in [0, 1, 65535, 65536, 1_000_000] {
            let [x, y, z] = dispatch(groups);
            assert!(x as usize * y as usize * z as usize >= groups && x <= 65535 && y <= 65535);
        }
    }
}
