//! The programs of the fused kernels, loops written out.

use flashrnn_core::{Dtype, Shapes};

use crate::programs::{Common, Program, Tensor};
use crate::select::{self, FUSED_STEPS, Fused, Lines};
use crate::unroll::unroll;

const FUSED: &str = include_str!("../shaders/fused.wgsl");

impl Common {
    /// A fused kernel of `file`, whose threads have so many lines of weights, `x_parts` parts of what these multiply, and carry in so
    /// many tensors.
    fn fused(
        &self,
        tensors: Vec<Tensor>,
        fused: Fused,
        shapes: &Shapes,
        lines: Lines,
        carried: usize,
        file: &str,
    ) -> Program {
        let Fused { units, split, rows, .. } = fused;
        let buffers = fused.buffers();
        let sizes = [
            ("UNITS", units),
            ("SPLIT", split),
            ("ROWS", rows),
            ("STEPS", FUSED_STEPS),
            ("LINES", lines.lines),
            ("GROUPS", lines.groups),
            ("CHUNKS", lines.chunks),
            ("KEPT", lines.kept),
            ("MULTIPLIERS", lines.threads),
            ("PIECES_OF_HEAD", fused.pieces(shapes, self.narrow())),
            ("BUFFERS", buffers),
            ("AHEAD", buffers - 1),
            ("PAIRS_OF_PIECE", select::piece(self.narrow()) / 2),
        ];
        let constants: String =
            sizes.iter().map(|(name, size)| format!("const {name} = {size}u;\n")).collect();
        let of_text = [
            ("STATES", shapes.states),
            ("GATES", shapes.gates),
            ("RECURRENT", shapes.recurrent),
            ("INNER", shapes.inner()),
            ("PARTS", shapes.recurrent * split),
            ("LOADS", carried.div_ceil(fused.turns())),
            ("SHARED", usize::from(split > 1)),
            ("STREAMS", usize::from(lines.kept < lines.chunks)),
        ];
        let pieces = match self.element {
            Dtype::F32 => include_str!("../shaders/fused_pieces_32.wgsl").to_string(),
            narrow => include_str!("../shaders/fused_pieces_16.wgsl").replace("FORMAT", &narrow.to_string()),
        };
        let kept = if lines.wide {
            include_str!("../shaders/fused_kept_wide.wgsl")
        } else {
            include_str!("../shaders/fused_kept.wgsl")
        };
        let file = file
            .replace("    //@ weights\n", include_str!("../shaders/fused_weights.wgsl"))
            .replace("        //@ product\n", include_str!("../shaders/fused_product.wgsl"));
        let kernel = unroll(&[kept, &file].concat(), &[&sizes[..], &of_text].concat());
        self.of_cell(tensors, &[&constants, FUSED, &pieces, &kernel])
    }

    /// R as the fused kernels read it.
    pub fn pack_fused(&self, fused: Fused, shapes: &Shapes) -> Program {
        let sizes = [
            ("UNITS", fused.units),
            ("SPLIT", fused.split),
            ("DEPTH", fused.depth()),
            ("TILE", fused.tile(shapes)),
            ("NUMBERS", select::piece(self.narrow())),
            ("PIECES_OF_LINE", fused.depth() / select::piece(self.narrow())),
            ("PIECES_OF_HEAD", fused.pieces(shapes, self.narrow())),
        ];
        let constants: String =
            sizes.iter().map(|(name, size)| format!("const {name} = {size}u;\n")).collect();
        self.pack_with(&[&constants, include_str!("../shaders/pack_fused.wgsl")])
    }

    /// The forward pass's time steps.
    pub fn fused_forward(&self, fused: Fused, shapes: &Shapes, words: bool) -> Program {
        let file = include_str!("../shaders/fused_forward.wgsl");
        let lines = fused.forward(shapes, self.narrow());
        self.fused(self.forward_tensors(words), fused, shapes, lines, shapes.external, file)
    }

    /// The backward pass's time steps.
    pub fn fused_backward(&self, fused: Fused, shapes: &Shapes, words: bool) -> Program {
        let file = self.recomputed() + include_str!("../shaders/fused_backward.wgsl");
        let lines = fused.backward(shapes, self.narrow());
        let carried = shapes.gates + 2 * shapes.states;
        self.fused(self.backward_tensors(words), fused, shapes, lines, carried, &file)
    }
}
