//! The kernels of the gradients of R and b.

use flashrnn_core::Dtype;

use super::adapter::{Adapter, MAX_LOOP};

/// Maximum number of elements of all partial sums, unless one part has more.
const MAX_PARTIAL: usize = 1 << 24;

/// Maximum number of parts of a sum.
const MAX_PARTS: usize = 64;

/// A kernel's loop over tokens.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Minimum number of tokens that one iteration of the loop adds.
    pub tokens: usize,
    /// Minimum number of tokens in a part except the last, because writing a part's sums takes
    /// time.
    pub min_part: usize,
}

/// The loop of `weight_grad`.
pub const WEIGHT_GRAD: Round = Round { tokens: 8, min_part: 512 };

/// The loop of `bias_grad`.
pub const BIAS_GRAD: Round = Round { tokens: 1, min_part: 256 };

/// Splits a sum over tokens into parts. Returns the number of parts and the number of tokens of
/// each. A part has `columns` partial sums.
pub fn parts(tokens: usize, columns: usize, round: Round) -> (usize, usize) {
    let max_parts = (MAX_PARTIAL / columns.max(1)).clamp(1, MAX_PARTS);
    let length = tokens.div_ceil(max_parts).clamp(round.min_part, MAX_LOOP * round.tokens);
    (tokens.div_ceil(length), length)
}

/// The tile of `weight_grad`. The names are those of shaders/weight_grad/tiles.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradTile {
    /// Groups of four units per invocation, along each side of a tile.
    pub fours: usize,
    /// Tokens whose products are unrolled.
    pub at_once: usize,
}

impl GradTile {
    /// Chooses the tile for heads of `head_dim` units. Drivers that run on the CPU take seconds to
    /// compile unrolled products.
    pub fn new(head_dim: usize, adapter: Adapter) -> Self {
        let fours = if !adapter.cpu && head_dim > 64 { 2 } else { 1 };
        Self { fours, at_once: if adapter.cpu { 1 } else { 16 / fours } }
    }

    /// Returns the side of a tile.
    pub fn width(self) -> usize {
        64 * self.fours
    }
}

/// Returns the side of a tile if cooperative matrices compute the gradient of R.
pub fn matrix_width(head_dim: usize, element: Dtype, adapter: Adapter) -> Option<usize> {
    let fits = |width: &usize| {
        let bytes = 2 * 32 * (width + 8) * size_of::<u16>();
        head_dim.is_multiple_of(*width)
            && bytes <= adapter.workgroup_bytes
            && adapter.invocations >= 256
    };
    [128, 64].into_iter().filter(|_| adapter.matrix && element == Dtype::F16).find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::examples::H200;

    #[test]
    fn matrices_where_there_are_some() {
        let adapter = Adapter { matrix: true, ..H200 };
        let width = |head_dim, element| matrix_width(head_dim, element, adapter);
        assert_eq!([64, 128, 192, 256].map(|d| width(d, Dtype::F16)), [64, 128, 64, 128].map(Some));
        assert_eq!([1, 32, 96, 100].map(|d| width(d, Dtype::F16)), [None; 4]);
        assert_eq!([Dtype::F32, Dtype::Bf16].map(|element| width(64, element)), [None; 2]);
        assert_eq!(matrix_width(64, Dtype::F16, H200), None);
        assert_eq!(
            matrix_width(128, Dtype::F16, Adapter { workgroup_bytes: 16 << 10, ..adapter }),
            Some(64)
        );
    }

    #[test]
    fn parts_cover_all_tokens() {
        for tokens in [0, 1, 255, 256, 257, 100_000, 10_000_000] {
            for columns in [1, 1 << 16, 1 << 26] {
                for round in [WEIGHT_GRAD, BIAS_GRAD] {
                    let (parts, length) = parts(tokens, columns, round);
                    assert!(
                        parts * length >= tokens && (parts == 0 || (parts - 1) * length < tokens)
                    );
                    assert!(length <= MAX_LOOP * round.tokens);
                }
            }
        }
    }
}
