//! Alignment of rows: the width of copies in the fused kernels, and the layout of saved gates.

use flashrnn_core::Shapes;

/// The widths of copies: powers of two that may divide the addresses of all rows. 1 means 2-byte
/// copies where interleaved gates are not word-aligned.
pub const COPY_BYTES: [usize; 5] = [16, 8, 4, 2, 1];

/// Returns the widest copy, in bytes, of rows of D elements in tensors that start at multiples of
/// 16 bytes.
pub fn copy_bytes(shapes: &Shapes, element_bytes: usize) -> usize {
    let row = shapes.head_dim * element_bytes;
    COPY_BYTES.into_iter().find(|&bytes| row.is_multiple_of(bytes)).unwrap_or(1)
}

/// Returns whether fused kernels save the gates interleaved, `[tokens, N, D, G]`. They do for
/// 16-bit tensors if rows of D elements are not a multiple of 16 bytes and all gates of a unit form
/// a word of 4, 8 or 16 bytes, which is then aligned.
pub fn interleaves(shapes: &Shapes, element_bytes: usize) -> bool {
    let all = shapes.gates * element_bytes;
    element_bytes == 2 && copy_bytes(shapes, element_bytes) < 16 && [4, 8, 16].contains(&all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{Elman, Lstm, Problem};

    #[test]
    fn copies_are_as_wide_as_rows_allow() {
        let copy_bytes = |head_dim, bytes| {
            copy_bytes(&Problem::new(1, 1, 1, head_dim).shapes::<Lstm>().unwrap(), bytes)
        };
        for (head_dim, bytes, want) in [
            (64, 2, 16),
            (72, 2, 16),
            (100, 2, 8),
            (50, 2, 4),
            (257, 2, 2),
            (1, 2, 2),
            (64, 4, 16),
            (50, 4, 8),
            (33, 4, 4),
        ] {
            assert_eq!(copy_bytes(head_dim, bytes), want, "D {head_dim} of {bytes} bytes");
        }
        let lstm = |head_dim| Problem::new(1, 1, 1, head_dim).shapes::<Lstm>().unwrap();
        let interleaved =
            [(51, 2), (100, 2), (104, 2), (51, 4)].map(|(d, bytes)| interleaves(&lstm(d), bytes));
        assert_eq!(interleaved, [true, true, false, false]);
        assert!(!interleaves(&Problem::new(1, 1, 1, 51).shapes::<Elman>().unwrap(), 2));
    }
}
