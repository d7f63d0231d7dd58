//! The programs of the fused kernels, loops written out.

use flashrnn_core::{Dtype, Shapes};

use crate::programs::template::unroll;
use crate::programs::{Common, Program, Tensor, declared};
use crate::select::{self, FUSED_STEPS, Fused, Lines};

const FUSED: &str = include_str!("../../shaders/fused.wgsl");

/// What of a fused kernel its pass decides.
struct Pass<'a> {
    file: &'a str,
    tensors: Vec<Tensor>,
    lines: Lines,
    /// Parts along k, each of other threads.
    parts: usize,
    /// Whether parts of a sum meet in workgroup memory.
    shared: bool,
    /// Tensors that the threads carry in.
    carried: usize,
}

impl Common {
    fn fused(&self, fused: Fused, shapes: &Shapes, pass: Pass<'_>) -> Program {
        let Pass { lines, .. } = pass;
        let Fused { units, split, rows, .. } = fused;
        let piece = select::piece(self.narrow());
        let buffers = fused.buffers();
        let sizes = [
            ("UNITS", units),
            ("SPLIT", split),
            ("ROWS", rows),
            ("STEPS", FUSED_STEPS),
            ("PARTS", pass.parts),
            ("LINES", lines.lines),
            ("MULTIPLIERS", lines.threads),
            ("GROUPS", lines.groups),
            ("CHUNKS", lines.chunks),
            ("KEPT", lines.kept),
            ("STREAMED", lines.chunks - lines.kept),
            ("PAIRS_OF_PIECE", piece / 2),
            ("PIECES_OF_HEAD", fused.pieces(shapes, piece)),
            ("BUFFERS", buffers),
            ("AHEAD", buffers - 1),
        ];
        let of_text = [
            ("STATES", shapes.states),
            ("GATES", shapes.gates),
            ("RECURRENT", shapes.recurrent),
            ("INNER", shapes.inner()),
            ("SHARED", usize::from(pass.shared)),
            ("LOADS", pass.carried.div_ceil(fused.turns())),
        ];
        let pieces = match self.element {
            Dtype::F32 => include_str!("../../shaders/fused_pieces_32.wgsl").into(),
            narrow => include_str!("../../shaders/fused_pieces_16.wgsl")
                .replace("FORMAT", &narrow.to_string()),
        };
        let kept = match lines.wide {
            true => include_str!("../../shaders/fused_kept_wide.wgsl"),
            false => include_str!("../../shaders/fused_kept.wgsl"),
        };
        let file = pass
            .file
            .replace("    //@ weights\n", include_str!("../../shaders/fused_weights.wgsl"))
            .replace("        //@ product\n", include_str!("../../shaders/fused_product.wgsl"));
        let kernel = unroll(&[kept, &file].concat(), &[&sizes[..], &of_text].concat());
        self.of_cell(pass.tensors, &[&declared(&sizes), FUSED, &pieces, &kernel])
    }

    /// The forward pass's time steps.
    pub fn fused_forward(&self, fused: Fused, shapes: &Shapes, words: bool) -> Program {
        let pass = Pass {
            file: include_str!("../../shaders/fused_forward.wgsl"),
            tensors: self.forward_tensors(words),
            lines: fused.forward(shapes, self.narrow()),
            parts: fused.split,
            shared: fused.split > 1,
            carried: shapes.external,
        };
        self.fused(fused, shapes, pass)
    }

    /// The backward pass's time steps.
    pub fn fused_backward(&self, fused: Fused, shapes: &Shapes, words: bool) -> Program {
        let pass = Pass {
            file: &(self.recomputed() + include_str!("../../shaders/fused_backward.wgsl")),
            tensors: self.backward_tensors(words),
            lines: fused.backward(shapes, self.narrow()),
            parts: shapes.recurrent * fused.split,
            shared: true,
            carried: shapes.gates + 2 * shapes.states,
        };
        self.fused(fused, shapes, pass)
    }

    /// R as the fused kernels read it.
    pub fn pack_fused(&self, fused: Fused, shapes: &Shapes) -> Program {
        let piece = select::piece(self.narrow());
        let sizes = [
            ("UNITS", fused.units),
            ("SPLIT", fused.split),
            ("DEPTH", fused.depth()),
            ("TILE", fused.tile(shapes)),
            ("NUMBERS", piece),
            ("PIECES_OF_LINE", fused.depth() / piece),
            ("PIECES_OF_HEAD", fused.pieces(shapes, piece)),
        ];
        self.pack_with(&[&declared(&sizes), include_str!("../../shaders/pack_fused.wgsl")])
    }
}
