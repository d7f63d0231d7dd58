//! Grid kernels: how the blocks of a group, all running at the same time, divide a head whose R
//! does not fit a cluster.

mod sizes;
mod time;

use flashrnn_core::Shapes;

use crate::select::Gpu;
use crate::select::fused::too_many_tensors;

/// The layout of a grid kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Blocks per group. A group owns one head.
    pub blocks: usize,
    /// Blocks per cluster, 1 without clusters. The blocks of a cluster add up their products.
    pub cluster: usize,
    /// Units per block, even and at most 32.
    pub units: usize,
    /// Batch rows that a group computes at a time.
    pub rows: usize,
    /// Steps of 16 along k whose weights are in a warp's registers; the others are in shared
    /// memory.
    pub register_steps: usize,
    /// Cycles that a block waits after its barrier before it polls for words. Earlier polls find
    /// nothing, and delay the words of large groups. On an H200, with one row, 600 cycles save 12 to
    /// 25 % of the kernel's time, and 900 save less. With 4 rows and no clusters they cost 2 %.
    pub hold: usize,
    /// Buffers for the sums of the warps: 2, or 1 where shared memory is short, at the cost of a
    /// barrier per step.
    pub sum_buffers: usize,
    /// Groups per head. Each computes every `groups`-th set of `rows` rows.
    pub groups: usize,
}

/// The pass of a grid kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The blocks exchange h.
    Forward,
    /// The blocks exchange dg of the recurrent gates.
    Backward,
}

/// Warps per block.
const WARPS: usize = 8;

/// Threads per block.
pub const THREADS: usize = 32 * WARPS;

/// Values per word of an exchange.
const WORD_VALUES: usize = 6;

/// Bytes of a word.
const WORD_BYTES: usize = 16;

/// Words that a lane receives at a time. block.cuh divides the same number among the column tiles.
const WINDOW: usize = 8;

/// Rows that a group computes at a time, and the numbers of groups per head to try, in order; the
/// first that fits is taken. Up to 8 rows are the columns of one tile of the tensor cores. There
/// are few combinations, because each has to be compiled as a separate program.
const DESIGNS: [(usize, &[usize]); 6] =
    [(1, &[1]), (4, &[1]), (4, &[4, 2]), (8, &[2, 1]), (16, &[1]), (16, &[4, 2])];

/// Calls with fewer steps take the per-step kernels, because loading R and starting all blocks
/// costs more than those steps.
pub const MIN_STEPS: usize = 12;

/// Calls with more rows take the per-step kernels. At 256 rows these take twice as long, but with
/// lengths every group ranks all rows, which takes a time of O(B²).
pub(crate) const MAX_BATCH: usize = 1024;

/// Returns the layout of a pass's grid kernel, or `None` if the grid kernels cannot run the
/// problem, or the per-step kernels are faster.
pub fn grid(shapes: &Shapes, element_bytes: usize, gpu: Gpu, pass: Pass) -> Option<Grid> {
    let too_short = shapes.time < MIN_STEPS && gpu.cluster > 0;
    // The kernels count tokens, and elements of a token, in 32 bits.
    let too_many = shapes.tokens().max(shapes.gates * shapes.units()) > i32::MAX as usize;
    let nothing = shapes.recurrent == 0 || shapes.batch == 0;
    let too_many = too_many || shapes.batch > MAX_BATCH || too_many_tensors(shapes);
    if nothing || element_bytes != 2 || too_short || too_many {
        return None;
    }
    let designs = DESIGNS.into_iter().filter(|&(rows, _)| rows > 1 || shapes.batch == 1);
    let candidates = designs.flat_map(|(rows, groups)| {
        clusters(gpu, pass).filter_map(move |cluster| {
            let fits = |&groups: &usize| design(shapes, gpu, pass, [cluster, rows, groups]);
            let grid = groups.iter().find_map(fits)?;
            // Groups without rows are left out.
            Some(Grid { groups: grid.groups.min(shapes.batch.div_ceil(rows)), ..grid })
        })
    });
    candidates.min_by(|a, b| a.time(shapes, pass).total_cmp(&b.time(shapes, pass)))
}

/// Returns the cluster sizes that a pass may have. In the forward pass, adding up the gates of a
/// cluster would take longer than receiving all of h.
fn clusters(gpu: Gpu, pass: Pass) -> impl Iterator<Item = usize> {
    let sizes: &[usize] = if pass == Pass::Backward { &[1, 2, 4, 8] } else { &[1] };
    let wanted = move |&&size: &&usize| {
        pass == Pass::Forward || gpu.grid_cluster.is_none_or(|wanted| wanted == size)
    };
    sizes.iter().filter(wanted).copied()
}

/// Returns the fastest layout for a cluster size, a number of rows and a number of groups, if one
/// fits.
fn design(
    shapes: &Shapes,
    gpu: Gpu,
    pass: Pass,
    [cluster, rows, groups]: [usize; 3],
) -> Option<Grid> {
    let most = gpu.clusters_of(cluster) / (shapes.heads * groups) * cluster;
    let units = shapes.head_dim.div_ceil(most.max(1)).next_multiple_of(2).max(8);
    // In clusters, the exchange of the products is a barrier too.
    let buffers: &[usize] = if cluster == 1 { &[2, 1] } else { &[1] };
    let sizes = (units..=32).step_by(2).flat_map(|units| buffers.iter().map(move |n| (units, *n)));
    let layouts = sizes.map(|(units, sum_buffers)| {
        let blocks = shapes.head_dim.div_ceil(units).next_multiple_of(cluster);
        let hold = match (rows, cluster) {
            (4, 1) => 0,
            (4, _) => 400,
            _ => 600,
        };
        let grid =
            Grid { blocks, cluster, units, rows, register_steps: 0, hold, sum_buffers, groups };
        let registers = grid.weight_registers(shapes, gpu, pass);
        let register_steps = registers / (4 * grid.tiles(shapes, pass));
        Grid { register_steps: register_steps.min(grid.steps(shapes, pass)), ..grid }
    });
    layouts
        // Without registers for weights, the cell itself would spill.
        .filter(|grid| grid.register_steps > 0)
        // Four sums at a time are sent faster than two.
        .filter(|grid| grid.cluster == 1 || grid.units.is_multiple_of(4))
        // A lane sends one word of a row.
        .filter(|grid| grid.warp_rows() * grid.row_words(shapes, pass) <= 32)
        .filter(|grid| grid.blocks <= most && grid.shared(shapes, pass) <= gpu.shared_memory)
        .min_by(|a, b| a.time(shapes, pass).total_cmp(&b.time(shapes, pass)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::{Cell, Elman, Gru, Lstm, Problem, Slstm};

    const H200: Gpu = Gpu::H200;
    const RTX_4090: Gpu = Gpu::RTX_4090;
    const PASSES: [Pass; 2] = [Pass::Forward, Pass::Backward];

    fn shapes<C: Cell>(batch: usize, heads: usize, head_dim: usize) -> Shapes {
        Problem::new(batch, 64, heads, head_dim).shapes::<C>().unwrap()
    }

    #[test]
    fn layouts_cover_the_head_and_fit_the_device() {
        let mut found = 0;
        for head_dim in (1..40).chain((100..2100).step_by(37)) {
            for (batch, heads) in [(1, 1), (3, 2), (16, 1), (64, 1), (256, 3)] {
                let all = [
                    shapes::<Elman>(batch, heads, head_dim),
                    shapes::<Gru>(batch, heads, head_dim),
                    shapes::<Slstm>(batch, heads, head_dim),
                ];
                for (shapes, gpu, pass) in all.iter().flat_map(|shapes| {
                    let gpus = [H200, RTX_4090];
                    gpus.into_iter().flat_map(move |gpu| PASSES.map(|pass| (shapes, gpu, pass)))
                }) {
                    let Some(layout) = grid(shapes, 2, gpu, pass) else { continue };
                    found += 1;
                    assert!(layout.blocks * layout.units >= head_dim, "{layout:?}");
                    assert!(
                        (layout.blocks - layout.cluster) * layout.units < head_dim,
                        "{layout:?}"
                    );
                    assert_eq!(layout.blocks % layout.cluster, 0, "{layout:?}");
                    assert!(layout.grid(shapes) <= gpu.multiprocessors, "{layout:?}");
                    assert!(layout.shared(shapes, pass) <= gpu.shared_memory, "{layout:?}");
                    assert!(layout.units <= 32 && layout.units.is_multiple_of(2), "{layout:?}");
                }
            }
        }
        assert!(found > 1000, "{found}");
    }

    #[test]
    fn known_problems() {
        let of = |(batch, heads, head_dim)| {
            PASSES.map(|pass| {
                let layout = grid(&shapes::<Lstm>(batch, heads, head_dim), 2, H200, pass).unwrap();
                (layout.cluster, layout.blocks, layout.units, layout.rows, layout.groups)
            })
        };
        // Blocks per cluster and per group, units, rows and groups: the fastest on an H200 of those
        // that were measured, or not slower by more than the measurements vary.
        assert_eq!(of((16, 1, 768)), [(1, 32, 24, 4, 4), (4, 48, 16, 8, 2)]);
        assert_eq!(of((1, 1, 768)), [(1, 64, 12, 1, 1), (1, 48, 16, 1, 1)]);
        assert_eq!(of((16, 1, 1024)), [(1, 64, 16, 8, 2), (4, 52, 20, 8, 2)]);
        assert_eq!(of((16, 1, 1536)), [(1, 64, 24, 8, 2), (4, 96, 16, 16, 1)]);
        assert_eq!(of((16, 1, 2048)), [(1, 128, 16, 16, 1), (2, 128, 16, 16, 1)]);
        assert_eq!(of((1, 1, 2048)), [(1, 128, 16, 1, 1), (2, 128, 16, 1, 1)]);
        assert_eq!(of((16, 2, 512)), [(1, 32, 16, 8, 2), (1, 16, 32, 4, 4)]);
        assert_eq!(of((64, 1, 768))[1], (2, 32, 24, 16, 4));
        assert_eq!(of((16, 2, 1024))[0], (1, 64, 16, 16, 1));
    }

    #[test]
    fn heads_up_to_2048_units_fit_an_h200() {
        for pass in PASSES {
            for (batch, head_dim) in [(1, 2048), (16, 2048), (64, 2048), (16, 513), (7, 1111)] {
                assert!(grid(&shapes::<Lstm>(batch, 1, head_dim), 2, H200, pass).is_some());
                assert!(grid(&shapes::<Gru>(batch, 1, head_dim), 2, H200, pass).is_some());
            }
        }
        assert_eq!(grid(&shapes::<Lstm>(16, 1, 768), 4, H200, Pass::Forward), None, "f32");
        assert_eq!(grid(&shapes::<Lstm>(0, 1, 768), 2, H200, Pass::Forward), None);
        assert!(grid(&shapes::<Lstm>(MAX_BATCH, 1, 768), 2, H200, Pass::Forward).is_some());
        assert_eq!(grid(&shapes::<Lstm>(MAX_BATCH + 1, 1, 768), 2, H200, Pass::Forward), None);
        let part = Gpu { multiprocessors: 40, ..H200 };
        for pass in PASSES {
            let layout = grid(&shapes::<Lstm>(5, 1, 768), 2, part, pass).unwrap();
            assert!(layout.grid(&shapes::<Lstm>(5, 1, 768)) <= 40, "{layout:?}");
        }
        let short = Problem::new(16, MIN_STEPS - 1, 1, 768).shapes::<Lstm>().unwrap();
        assert_eq!(grid(&short, 2, H200, Pass::Forward), None);
    }

    #[test]
    fn cells_of_many_tensors_get_room_for_weights_or_other_kernels() {
        for (states, gates, head_dim) in [(16, 16, 768), (8, 8, 600), (16, 1, 1024)] {
            let of = |states, gates| Shapes {
                states,
                gates,
                external: gates,
                ..shapes::<Elman>(64, 1, head_dim)
            };
            for pass in PASSES {
                let layout = grid(&of(states, gates), 2, H200, pass);
                assert!(layout.is_none_or(|layout| layout.register_steps > 0), "{layout:?}");
                assert_eq!(grid(&of(states, 17), 2, H200, pass), None);
            }
        }
    }

    /// Every layout is a program of its own, which takes time to compile.
    #[test]
    fn few_layouts_serve_all_batches() {
        for head_dim in [513, 768, 1024, 1536, 2048] {
            for pass in PASSES {
                let mut layouts = Vec::new();
                for batch in 1..=256 {
                    let shapes = shapes::<Lstm>(batch, 1, head_dim);
                    // The number of groups is not compiled in.
                    let layout = Grid { groups: 0, ..grid(&shapes, 2, H200, pass).unwrap() };
                    if !layouts.contains(&layout) {
                        layouts.push(layout);
                    }
                }
                assert!(layouts.len() <= 6, "D {head_dim} {pass:?}: {layouts:#?}");
            }
        }
    }
}
