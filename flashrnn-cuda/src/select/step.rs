//! Which tile of a step each block computes: pure functions of the problem and the element type.

use flashrnn_core::{Dtype, Shapes};

/// What a block of a step's kernel computes, and with how many warps. The kernels are compiled for
/// each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Units of a head.
    pub units: usize,
    /// Rows of the batch.
    pub rows: usize,
    /// Warps, which split the sum over k.
    pub warps: usize,
}

/// How a step's product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Multiply {
    /// Tensor cores, bf16 factors.
    Bf16,
    /// Tensor cores, f16 factors.
    F16,
    /// Tensor cores, f32 factors rounded to TF32.
    Tf32,
    /// Multiply-adds in f32.
    F32,
}

impl Multiply {
    /// For tensors of this type; TF32 only where asked for.
    pub fn new(dtype: Dtype, tf32: bool) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
            _ if tf32 => Self::Tf32,
            _ => Self::F32,
        }
    }
}

/// The bytes of k in a chunk, the step by which the kernels go through it.
const CHUNK: usize = 64;

/// D rounded up to whole chunks.
pub fn depth(head_dim: usize, element_bytes: usize) -> usize {
    head_dim.next_multiple_of(CHUNK / element_bytes)
}

/// The forward step's tile: its product has `Gr` rows of weights a unit.
///
/// Small tiles, so that a small batch spreads over the device: with 8 units a block an LSTM of 768
/// units has 96 blocks. The weight rows of a block are at most 64, which bounds its registers.
pub fn forward_tile(shapes: &Shapes, element_bytes: usize) -> Tile {
    let most: usize = if shapes.recurrent == 1 { 16 } else { 8 };
    let units = [16, 8, 4, 2, 1]
        .into_iter()
        .find(|&n| n <= most && n * shapes.recurrent <= 64)
        .unwrap_or(1);
    let chunks = depth(shapes.head_dim, element_bytes) * element_bytes / CHUNK;
    Tile { units, rows: rows(shapes.batch), warps: warps(chunks) }
}

/// The backward step's tile: its product has one row of weights a unit, and k over `Gr` gates. A
/// block has a thread for each unit and row, whose inputs it then fetches before the step after has
/// ended.
pub fn backward_tile(shapes: &Shapes, element_bytes: usize) -> Tile {
    let wide = Tile { units: 16, rows: rows(shapes.batch), warps: 8 };
    // Two blocks of 8 rows read R twice, but a long sum over k is better spread.
    let long = shapes.recurrent * depth(shapes.head_dim, element_bytes) >= 1024;
    if long { Tile { rows: 8, ..wide } } else { wide }
}

fn rows(batch: usize) -> usize {
    if batch <= 8 { 8 } else { 16 }
}

fn warps(chunks: usize) -> usize {
    if chunks <= 8 { 4 } else { 8 }
}

/// What of a device decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The most blocks of a cluster; 1 where there are none (before compute capability 9.0).
    pub cluster: usize,
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of shared memory that a block may have.
    pub shared_memory: usize,
}

/// The blocks of a step.
pub fn blocks(shapes: &Shapes, tile: Tile) -> usize {
    shapes.head_dim.div_ceil(tile.units) * shapes.heads * shapes.batch.div_ceil(tile.rows)
}

/// Into how many parts of the tokens a sum over all of them is cut, and how long each is: as many
/// as keep `multiprocessors` busy where each part is `blocks` blocks, none shorter than 256 tokens,
/// and at most 64; up to twice as many, or down to half, where then nothing is left over. What is,
/// less than a part, is a part of its own.
pub fn parts(tokens: usize, blocks: usize, multiprocessors: usize) -> (usize, usize) {
    let most = (tokens / 256).clamp(1, 64);
    let wanted = (2 * multiprocessors).div_ceil(blocks.max(1)).clamp(1, most);
    let mut near = (wanted..=most.min(2 * wanted)).chain((wanted.div_ceil(2)..wanted).rev());
    let parts = near.find(|&parts| tokens.is_multiple_of(parts)).unwrap_or(wanted);
    (parts, tokens / parts)
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

    #[test]
    fn parts_cover_the_tokens_up_to_less_than_a_part() {
        for tokens in [1, 255, 256, 257, 16384, 16381, 100_000, 1 << 33] {
            for blocks in [1, 48, 144, 1000] {
                let (parts, length) = parts(tokens, blocks, 132);
                assert!(
                    parts * length <= tokens && tokens - parts * length < length,
                    "{tokens} {blocks}"
                );
                assert!(parts == 1 || (parts <= 64 && length >= 256), "{tokens} {blocks}");
            }
        }
    }

    #[test]
    fn parts_leave_nothing_over_where_they_can() {
        // Parts of 48 blocks: 6 are wanted. More come before fewer, and 6 it is where none from 3
        // to 12 divides the tokens.
        for (tokens, want) in
            [(12 * 512, 6), (16 * 1024, 8), (7 * 512, 7), (5 * 521, 5), (13 * 17 * 19, 6)]
        {
            assert_eq!(parts(tokens, 48, 132), (want, tokens / want), "{tokens}");
        }
        // 6 divide, but 256 tokens a part allow 4.
        assert_eq!(parts(1026, 48, 132), (3, 342));
        assert_eq!(parts(0, 48, 132), (1, 0));
    }
}
