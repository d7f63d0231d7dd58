//! The per-step kernels.

use flashrnn_core::Shapes;

use super::Adapter;

/// Units of a head in a workgroup.
pub const STEP_UNITS: usize = 8;
/// Rows of the batch in a workgroup.
pub const STEP_ROWS: usize = 16;

/// Returns the number of workgroups of a per-step kernel.
pub fn step_groups(shapes: &Shapes) -> usize {
    shapes.head_dim.div_ceil(STEP_UNITS) * shapes.heads * shapes.batch.div_ceil(STEP_ROWS)
}

/// Returns an upper bound for the iterations of every loop along k: those of a loop over all
/// recurrent gates that takes 4 elements at a time, the smallest [`chunk`].
pub fn longest_loop(shapes: &Shapes) -> usize {
    shapes.head_dim.div_ceil(4) * shapes.recurrent
}

/// Returns the number of elements along k that the kernel that recomputes gates loads into
/// workgroup memory at a time. Returns `None` if even the smallest chunk needs more than
/// `workgroup_bytes`.
pub fn chunk(recurrent: usize, workgroup_bytes: usize) -> Option<usize> {
    [32, 16, 8, 4]
        .into_iter()
        .find(|chunk| (recurrent + 1) * 16 * (chunk + 1) * size_of::<f32>() <= workgroup_bytes)
}

/// The tile of a per-step kernel's product, of 256 threads, 8 units of a head and 16 rows. The
/// names are those of shaders/step/product.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Lines of weights of a thread.
    pub lines: usize,
    /// Threads that share a sum. Each takes every `parts`-th piece along k.
    pub parts: usize,
    /// Pieces of each line that a thread holds in registers.
    pub pieces: usize,
    /// Number of times that workgroup memory is filled; 0 if the kernel serves heads of all sizes
    /// and computes this number itself.
    pub rounds: usize,
    /// Lines whose sums are added at a time.
    pub at_once: usize,
    /// Parts of a sum that the threads of a subgroup add by shuffles; 1 if subgroups are not used.
    pub subgroup_parts: usize,
}

/// Maximum number of registers of a thread that hold weights of the current and the next round.
const MAX_WEIGHTS: usize = 128;

impl Tile {
    /// Chooses the tile of the forward pass: each thread computes all recurrent gates of one unit.
    pub fn forward(shapes: &Shapes, adapter: Adapter) -> Self {
        Self::new(shapes.recurrent, 8, shapes.head_dim.div_ceil(4), adapter)
    }

    /// Chooses the tile of the backward pass: each thread computes 4 units.
    pub fn backward(shapes: &Shapes, adapter: Adapter) -> Self {
        Self::new(4, 32, shapes.recurrent * shapes.head_dim.div_ceil(4), adapter)
    }

    fn new(lines: usize, parts: usize, length: usize, adapter: Adapter) -> Self {
        let Adapter { workgroup_bytes, subgroup, .. } = adapter;
        // A round has at least 16 pieces of each of the 16 rows, so that all 256 threads load.
        let min_pieces = 16usize.div_ceil(parts);
        let with = |pieces: usize| {
            let rounds = if adapter.cpu { 0 } else { length.div_ceil(parts * pieces) };
            Self { lines, parts, pieces, rounds, at_once: 1, subgroup_parts: 1 }
        };
        let fits = |tile: &Self| {
            let registers = 4 * tile.lines * tile.pieces * tile.rounds.min(2);
            registers <= MAX_WEIGHTS && tile.workgroup_bytes() <= workgroup_bytes
        };
        // At most the pieces of one round.
        let max_pieces =
            if adapter.cpu { min_pieces } else { length.div_ceil(parts).next_power_of_two() };
        let tile = [8, 4, 2, 1]
            .into_iter()
            .filter(|&pieces| min_pieces <= pieces && pieces <= max_pieces)
            .map(with)
            .find(fits);
        let tile = tile.unwrap_or(with(min_pieces));
        let fits = |tile: &Self| tile.workgroup_bytes() <= workgroup_bytes;
        // A part has 4 adjacent threads.
        let subgroup_parts = (subgroup / 4).clamp(1, parts);
        let shuffled = Self { at_once: lines, subgroup_parts, ..tile };
        let unshuffled = (1..=lines).rev().map(|at_once| Self { at_once, ..tile });
        std::iter::once(shuffled).chain(unshuffled).find(fits).unwrap_or(tile)
    }

    /// Returns the number of a thread's sums, padded to a multiple of 4 if subgroups add them.
    pub fn padded_lines(self) -> usize {
        if self.subgroup_parts == 1 { self.lines } else { self.lines.next_multiple_of(4) }
    }

    /// Returns the number of pieces of the rows that a thread moves to workgroup memory per round.
    pub fn loads(self) -> usize {
        16 * self.parts * self.pieces / 256
    }

    /// Returns the number of sums of 4 rows that are added at a time.
    fn sums(self) -> usize {
        256 / self.parts * self.at_once
    }

    /// Returns the number of parts of a sum in workgroup memory.
    fn memory_parts(self) -> usize {
        self.parts / self.subgroup_parts
    }

    /// Returns the number of threads that add the parts of one sum.
    pub fn adders(self) -> usize {
        1 << (256 / self.sums()).clamp(1, self.memory_parts()).ilog2()
    }

    /// Returns the size of workgroup memory in bytes.
    pub fn workgroup_bytes(self) -> usize {
        16 * (16 * (self.parts * self.pieces + 2)).max(self.sums() * self.memory_parts())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::examples::{H200, MINIMAL};
    use flashrnn_core::{Elman, Gru, Lstm, Problem};

    #[test]
    fn tiles_cover_k_and_fit_workgroup_memory() {
        let tile = |lines, parts, pieces, rounds, at_once, subgroup_parts| Tile {
            lines,
            parts,
            pieces,
            rounds,
            at_once,
            subgroup_parts,
        };
        let lstm = Problem::new(16, 1, 3, 256).shapes::<Lstm>().unwrap();
        let cpu = Adapter { cpu: true, subgroup: 8, ..H200 };
        assert_eq!(Tile::forward(&lstm, H200), tile(4, 8, 8, 1, 4, 8));
        assert_eq!(Tile::forward(&lstm, Adapter { subgroup: 1, ..H200 }), tile(4, 8, 8, 1, 4, 1));
        assert_eq!(Tile::forward(&lstm, MINIMAL), tile(4, 8, 4, 2, 4, 1));
        assert_eq!(Tile::forward(&lstm, cpu), tile(4, 8, 2, 0, 4, 2));
        assert_eq!(Tile::backward(&lstm, H200), tile(4, 32, 4, 2, 4, 8));
        assert_eq!(Tile::backward(&lstm, Adapter { subgroup: 1, ..H200 }), tile(4, 32, 4, 2, 4, 1));
        assert_eq!(Tile::backward(&lstm, cpu), tile(4, 32, 1, 0, 4, 2));
        // Too many lines for workgroup memory.
        let wide = Shapes { recurrent: 12, ..lstm };
        assert_eq!(Tile::forward(&wide, Adapter { subgroup: 8, ..MINIMAL }).subgroup_parts, 1);
        for head_dim in 1..=600 {
            for adapter in [
                MINIMAL,
                Adapter { subgroup: 8, ..MINIMAL },
                H200,
                Adapter { subgroup: 128, ..H200 },
                cpu,
            ] {
                let problem = Problem::new(16, 1, 3, head_dim);
                for shapes in
                    [problem.shapes::<Elman>(), problem.shapes::<Gru>(), problem.shapes::<Lstm>()]
                {
                    let shapes = shapes.unwrap();
                    let pieces = head_dim.div_ceil(4);
                    let tiles = [Tile::forward(&shapes, adapter), Tile::backward(&shapes, adapter)];
                    for (tile, length) in tiles.into_iter().zip([pieces, shapes.recurrent * pieces])
                    {
                        let round = tile.parts * tile.pieces;
                        let covered =
                            tile.rounds * round >= length && (tile.rounds - 1) * round < length;
                        assert!(if adapter.cpu { tile.rounds == 0 } else { covered }, "{tile:?}");
                        assert!(
                            tile.workgroup_bytes() <= adapter.workgroup_bytes
                                && tile.loads() * 16 == round,
                            "{tile:?}"
                        );
                        assert_eq!(
                            tile.subgroup_parts,
                            (adapter.subgroup / 4).clamp(1, tile.parts)
                        );
                        assert!(tile.sums() * tile.adders() <= 256, "{tile:?}");
                        assert!(tile.memory_parts().is_multiple_of(tile.adders()), "{tile:?}");
                    }
                }
            }
        }
    }

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
}
