//! The per-step kernels: the tile of a step that each block computes.

use flashrnn_core::{Dtype, Shapes};

/// The part of a step that a block computes. The kernels are compiled for each tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Units of one head.
    pub units: usize,
    /// Batch rows.
    pub rows: usize,
    /// Warps, which divide k between them.
    pub warps: usize,
}

/// The arithmetic of the product in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Multiply {
    /// Tensor cores with bf16 factors.
    Bf16,
    /// Tensor cores with f16 factors.
    F16,
    /// Tensor cores with f32 factors rounded to TF32.
    Tf32,
    /// Multiply-adds in f32.
    F32,
}

impl Multiply {
    /// Returns the arithmetic for tensors of `dtype`. `tf32` allows TF32 for f32 tensors.
    pub fn new(dtype: Dtype, tf32: bool) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
            _ if tf32 => Self::Tf32,
            _ => Self::F32,
        }
    }
}

/// The size in bytes of the chunks in which the kernels read k.
const CHUNK: usize = 64;

/// Returns D rounded up to whole chunks.
pub fn depth(head_dim: usize, element_bytes: usize) -> usize {
    head_dim.next_multiple_of(CHUNK / element_bytes)
}

/// Returns the tile of a forward step, whose product has `Gr` rows of weights per unit.
///
/// Tiles are small so that even a small batch occupies the GPU: with 8 units per block, an LSTM of
/// 768 units has 96 blocks. A block has at most 64 rows of weights, to bound its registers.
pub fn forward_tile(shapes: &Shapes, element_bytes: usize) -> Tile {
    let max_units: usize = if shapes.recurrent == 1 { 16 } else { 8 };
    let units = [16, 8, 4, 2, 1]
        .into_iter()
        .find(|&n| n <= max_units && n * shapes.recurrent <= 64)
        .unwrap_or(1);
    let chunks = depth(shapes.head_dim, element_bytes) * element_bytes / CHUNK;
    Tile { units, rows: rows(shapes.batch), warps: warps(chunks) }
}

/// Returns the tile of a backward step, whose product has one row of weights per unit and sums over
/// `Gr` gates.
///
/// A block has one thread per unit and row. The threads fetch their inputs before the previous
/// launch has ended.
pub fn backward_tile(shapes: &Shapes, element_bytes: usize) -> Tile {
    let wide = Tile { units: 16, rows: rows(shapes.batch), warps: 8 };
    // Two blocks of 8 rows both read R, but more warps share a long sum over k.
    let long = shapes.recurrent * depth(shapes.head_dim, element_bytes) >= 1024;
    if long { Tile { rows: 8, ..wide } } else { wide }
}

fn rows(batch: usize) -> usize {
    if batch <= 8 { 8 } else { 16 }
}

fn warps(chunks: usize) -> usize {
    if chunks <= 8 { 4 } else { 8 }
}

/// Returns the number of blocks per step.
pub fn blocks(shapes: &Shapes, tile: Tile) -> usize {
    shapes.head_dim.div_ceil(tile.units) * shapes.heads * shapes.batch.div_ceil(tile.rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{Elman, Gru, Lstm, Problem};

    #[test]
    fn tiles_of_known_problems() {
        let lstm = |batch, heads, head_dim| {
            Problem::new(batch, 1, heads, head_dim).shapes::<Lstm>().unwrap()
        };
        assert_eq!(forward_tile(&lstm(16, 12, 64), 2), Tile { units: 8, rows: 16, warps: 4 });
        assert_eq!(forward_tile(&lstm(1, 1, 768), 2), Tile { units: 8, rows: 8, warps: 8 });
        assert_eq!(backward_tile(&lstm(16, 12, 64), 2), Tile { units: 16, rows: 16, warps: 8 });
        assert_eq!(backward_tile(&lstm(16, 1, 768), 2), Tile { units: 16, rows: 8, warps: 8 });
        assert_eq!(blocks(&lstm(16, 1, 768), Tile { units: 8, rows: 16, warps: 8 }), 96);
        assert_eq!(blocks(&lstm(17, 3, 1), Tile { units: 8, rows: 16, warps: 4 }), 6);
        let elman = Problem::new(16, 1, 1, 768).shapes::<Elman>().unwrap();
        assert_eq!(forward_tile(&elman, 4).units, 16);
        let gru = Problem::new(16, 1, 3, 256).shapes::<Gru>().unwrap();
        assert_eq!(forward_tile(&gru, 2), Tile { units: 8, rows: 16, warps: 4 });
    }

    #[test]
    fn depth_is_whole_chunks() {
        for (head_dim, bytes, want) in
            [(1, 2, 32), (32, 2, 32), (33, 2, 64), (1, 4, 16), (17, 4, 32)]
        {
            assert_eq!(depth(head_dim, bytes), want);
        }
    }
}
