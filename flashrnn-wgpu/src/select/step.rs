//! The kernels of one step.

use flashrnn_core::Shapes;

use super::Adapter;

/// Units of a head and rows of the batch of a workgroup.
pub const STEP_UNITS: usize = 8;
pub const STEP_ROWS: usize = 16;

/// Workgroups of a dispatch of a kernel of one step.
pub fn step_groups(shapes: &Shapes) -> usize {
    shapes.head_dim.div_ceil(STEP_UNITS) * shapes.heads * shapes.batch.div_ceil(STEP_ROWS)
}

/// The most rounds of a kernel's loop: those of the backward pass's product, with the smallest
/// [`chunk`].
pub fn longest_loop(shapes: &Shapes) -> usize {
    shapes.head_dim.div_ceil(4) * shapes.recurrent
}

/// Elements of k that a product brings to workgroup memory at a time, for a cell with this many
/// recurrent gates; `None` where even the fewest take more than `workgroup_bytes`.
pub fn chunk(recurrent: usize, workgroup_bytes: usize) -> Option<usize> {
    [32, 16, 8, 4]
        .into_iter()
        .find(|chunk| (recurrent + 1) * 16 * (chunk + 1) * size_of::<f32>() <= workgroup_bytes)
}

/// How a kernel of one step computes its product: 256 threads have 8 units of a head and 16 rows.
/// The names are those of shaders/step.wgsl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Lines of weights of a thread.
    pub lines: usize,
    /// Threads that share a sum, each with every so-many-th piece of k.
    pub parts: usize,
    /// Pieces of each line that a thread has in registers.
    pub pieces: usize,
    /// How often workgroup memory is filled; 0: the kernel counts, for it serves heads of all
    /// sizes.
    pub rounds: usize,
    /// Lines whose sums are added up at a time.
    pub at_once: usize,
    /// Parts of a sum that the threads of a subgroup add up among themselves; 1 where subgroups are
    /// not used.
    pub together: usize,
}

/// Registers of a thread that hold weights: of this round, and of the next if there is one.
const WEIGHTS: usize = 128;

impl Tile {
    /// Of the forward pass: a thread has the recurrent gates of a unit.
    pub fn forward(shapes: &Shapes, adapter: Adapter) -> Self {
        Self::new(shapes.recurrent, 8, shapes.head_dim.div_ceil(4), adapter)
    }

    /// Of the backward pass: a thread has 4 units.
    pub fn backward(shapes: &Shapes, adapter: Adapter) -> Self {
        Self::new(4, 32, shapes.recurrent * shapes.head_dim.div_ceil(4), adapter)
    }

    fn new(lines: usize, parts: usize, length: usize, adapter: Adapter) -> Self {
        let Adapter { workgroup_bytes, subgroup, .. } = adapter;
        // Whole loads of 256 threads: 16 rows of at least 16 pieces.
        let least = 16usize.div_ceil(parts);
        let with = |pieces: usize| {
            let rounds = if adapter.cpu { 0 } else { length.div_ceil(parts * pieces) };
            Self { lines, parts, pieces, rounds, at_once: 1, together: 1 }
        };
        let fits = |tile: &Self| {
            let registers = 4 * tile.lines * tile.pieces * tile.rounds.min(2);
            registers <= WEIGHTS && tile.workgroup_bytes() <= workgroup_bytes
        };
        // No more than one round needs.
        let most = if adapter.cpu { least } else { length.div_ceil(parts).next_power_of_two() };
        let tile = [8, 4, 2, 1]
            .into_iter()
            .filter(|&pieces| least <= pieces && pieces <= most)
            .map(with)
            .find(fits);
        let tile = tile.unwrap_or(with(least));
        let fits = |tile: &Self| tile.workgroup_bytes() <= workgroup_bytes;
        // A part has 4 threads, one beside the other.
        let together = Self { at_once: lines, together: (subgroup / 4).clamp(1, parts), ..tile };
        let alone = (1..=lines).rev().map(|at_once| Self { at_once, ..tile });
        std::iter::once(together).chain(alone).find(fits).unwrap_or(tile)
    }

    /// Sums of a thread, with those that fill up fours where subgroups add them up.
    pub fn held(self) -> usize {
        if self.together == 1 { self.lines } else { self.lines.next_multiple_of(4) }
    }

    /// Pieces of the rows that a thread brings to workgroup memory in a round.
    pub fn loads(self) -> usize {
        16 * self.parts * self.pieces / 256
    }

    /// Sums that are added up at a time, by 4 rows.
    fn sums(self) -> usize {
        256 / self.parts * self.at_once
    }

    /// Parts of a sum in workgroup memory.
    fn kept(self) -> usize {
        self.parts / self.together
    }

    /// Threads that share the adding of a sum's parts.
    pub fn adders(self) -> usize {
        1 << (256 / self.sums()).clamp(1, self.kept()).ilog2()
    }

    /// Bytes of workgroup memory.
    pub fn workgroup_bytes(self) -> usize {
        16 * (16 * (self.parts * self.pieces + 2)).max(self.sums() * self.kept())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::examples::{H200, LEAST};
    use flashrnn_core::{Elman, Gru, Lstm, Problem};

    #[test]
    fn tiles_cover_k_and_fit_workgroup_memory() {
        let tile = |lines, parts, pieces, rounds, at_once, together| Tile {
            lines,
            parts,
            pieces,
            rounds,
            at_once,
            together,
        };
        let lstm = Problem::new(16, 1, 3, 256).shapes::<Lstm>().unwrap();
        let cpu = Adapter { cpu: true, subgroup: 8, ..H200 };
        assert_eq!(Tile::forward(&lstm, H200), tile(4, 8, 8, 1, 4, 8));
        assert_eq!(Tile::forward(&lstm, Adapter { subgroup: 1, ..H200 }), tile(4, 8, 8, 1, 4, 1));
        assert_eq!(Tile::forward(&lstm, LEAST), tile(4, 8, 4, 2, 4, 1));
        assert_eq!(Tile::forward(&lstm, cpu), tile(4, 8, 2, 0, 4, 2));
        assert_eq!(Tile::backward(&lstm, H200), tile(4, 32, 4, 2, 4, 8));
        assert_eq!(Tile::backward(&lstm, Adapter { subgroup: 1, ..H200 }), tile(4, 32, 4, 2, 4, 1));
        assert_eq!(Tile::backward(&lstm, cpu), tile(4, 32, 1, 0, 4, 2));
        // So many lines find no room together.
        let wide = Shapes { recurrent: 12, ..lstm };
        assert_eq!(Tile::forward(&wide, Adapter { subgroup: 8, ..LEAST }).together, 1);
        for head_dim in 1..=600 {
            for adapter in [
                LEAST,
                Adapter { subgroup: 8, ..LEAST },
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
                        assert_eq!(tile.together, (adapter.subgroup / 4).clamp(1, tile.parts));
                        assert!(tile.sums() * tile.adders() <= 256, "{tile:?}");
                        assert!(tile.kept().is_multiple_of(tile.adders()), "{tile:?}");
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
