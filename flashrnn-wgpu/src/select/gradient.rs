//! The kernels of the gradients of R and b.

use flashrnn_core::Dtype;

use super::{Adapter, LONGEST_LOOP};

/// The elements that partial sums take, unless one part takes more.
const MOST_PARTIAL: usize = 1 << 24;

/// A sum over tokens in parts: how many, and the tokens of each. `columns` is what one part takes,
/// in elements, `round` the tokens that one round of the kernel's loop adds, and `least` the fewest
/// of a part but the last.
pub fn parts(tokens: usize, columns: usize, [round, least]: [usize; 2]) -> (usize, usize) {
    let most = (MOST_PARTIAL / columns.max(1)).clamp(1, 64);
    let length = tokens.div_ceil(most).clamp(least, LONGEST_LOOP * round);
    (tokens.div_ceil(length), length)
}

/// Of `weight_gradient` and of `bias_gradient`: the tokens of a round, and the fewest of a part,
/// whose sums cost memory's time.
pub const GRADIENT_ROUNDS: [[usize; 2]; 2] = [[8, 512], [1, 256]];

/// How `weight_gradient` computes its product. The names are those of shaders/gradients.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gradient {
    /// Fours of units of an invocation, along each side of a tile.
    pub fours: usize,
    /// Tokens whose products are written out.
    pub at_once: usize,
}

impl Gradient {
    /// For heads of so many units. A CPU's drivers take seconds to compile what is written out.
    pub fn new(head_dim: usize, adapter: Adapter) -> Self {
        let fours = if !adapter.cpu && head_dim > 64 { 2 } else { 1 };
        Self { fours, at_once: if adapter.cpu { 1 } else { 16 / fours } }
    }

    /// The side of a tile.
    pub fn width(self) -> usize {
        64 * self.fours
    }
}

/// The side of a tile of the gradient of R by cooperative matrices, or `None` where it is not made
/// by them.
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
                for round in GRADIENT_ROUNDS {
                    let (parts, length) = parts(tokens, columns, round);
                    assert!(
                        parts * length >= tokens && (parts == 0 || (parts - 1) * length < tokens)
                    );
                    assert!(length <= LONGEST_LOOP * round[0]);
                }
            }
        }
    }
}
