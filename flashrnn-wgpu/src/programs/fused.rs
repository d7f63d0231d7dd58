//! The programs of the fused kernels.

use flashrnn_core::{Dtype, Shapes};

use super::template::expand;
use super::tensors::{Tensor, TensorSet};
use super::{Program, Programs, constants};
use crate::select::{self, FUSED_STEPS, Fused, Lines};

const ROLES: &str = include_str!("../../shaders/fused/roles.wgsl");

/// The properties of a fused kernel that depend on the pass.
struct Pass<'a> {
    file: &'a str,
    lines: Lines,
    /// Parts along k, each computed by different threads.
    parts: usize,
    /// Whether the parts of a sum are added in workgroup memory.
    shared: bool,
    /// Number of tensors that a step loads.
    inputs: usize,
}

impl Programs {
    /// Builds the program that runs up to [`FUSED_STEPS`] time steps of the forward pass.
    pub fn fused_forward(&self, fused: Fused, shapes: &Shapes, word_aligned: bool) -> Program {
        let pass = Pass {
            file: include_str!("../../shaders/fused/forward.wgsl"),
            lines: fused.forward(shapes, self.narrow()),
            parts: fused.split,
            shared: fused.split > 1,
            inputs: shapes.external,
        };
        self.fused(fused, shapes, pass, self.forward_tensors(word_aligned))
    }

    /// Builds the program that runs up to [`FUSED_STEPS`] time steps of the backward pass.
    pub fn fused_backward(&self, fused: Fused, shapes: &Shapes, word_aligned: bool) -> Program {
        let pass = Pass {
            file: &(self.gates_row() + include_str!("../../shaders/fused/backward.wgsl")),
            lines: fused.backward(shapes, self.narrow()),
            parts: shapes.recurrent * fused.split,
            shared: true,
            inputs: shapes.gates + 2 * shapes.states,
        };
        self.fused(fused, shapes, pass, self.backward_tensors(word_aligned))
    }

    fn fused<S: TensorSet<Tensor>>(
        &self,
        fused: Fused,
        shapes: &Shapes,
        pass: Pass<'_>,
        tensors: S,
    ) -> Program {
        let Pass { lines, .. } = pass;
        let piece = select::piece(self.narrow());
        let buffers = fused.buffers();
        let declared = [
            ("UNITS", fused.units),
            ("SPLIT", fused.split),
            ("ROWS", fused.rows),
            ("STEPS", FUSED_STEPS),
            ("PARTS", pass.parts),
            ("LINES", lines.lines),
            ("MULTIPLIERS", lines.threads),
            ("GROUPS", lines.groups),
            ("CHUNKS", lines.chunks),
            ("RESIDENT", lines.resident),
            ("STREAMED", lines.chunks - lines.resident),
            ("PAIRS_PER_PIECE", piece / 2),
            ("PIECES_PER_HEAD", fused.pieces(shapes, piece)),
            ("BUFFERS", buffers),
            ("AHEAD", buffers - 1),
        ];
        let in_text_only = [
            ("STATES", shapes.states),
            ("GATES", shapes.gates),
            ("RECURRENT", shapes.recurrent),
            ("INNER", shapes.inner()),
            ("SHARED", usize::from(pass.shared)),
            ("LOADS", pass.inputs.div_ceil(fused.io_tensors())),
        ];
        let pieces = match self.element {
            Dtype::F32 => include_str!("../../shaders/fused/pieces_32.wgsl").into(),
            narrow => include_str!("../../shaders/fused/pieces_16.wgsl")
                .replace("FORMAT", &narrow.to_string()),
        };
        let resident = match lines.wide {
            true => include_str!("../../shaders/fused/resident_wide.wgsl"),
            false => include_str!("../../shaders/fused/resident.wgsl"),
        };
        let load_weights = include_str!("../../shaders/fused/load_weights.wgsl");
        let product = include_str!("../../shaders/fused/product.wgsl");
        let file = pass
            .file
            .replace("    //@ load_weights\n", load_weights)
            .replace("        //@ product\n", product);
        let sizes = [&declared[..], &in_text_only].concat();
        let kernel = expand(&[resident, &file].concat(), &sizes);
        self.program_of_cell(tensors, &[&constants(&declared), ROLES, &pieces, &kernel])
    }

    /// Builds the program that packs R for the fused kernels.
    pub fn pack_fused(&self, fused: Fused, shapes: &Shapes) -> Program {
        let piece = select::piece(self.narrow());
        let sizes = [
            ("UNITS", fused.units),
            ("SPLIT", fused.split),
            ("DEPTH", fused.depth()),
            ("TILE", fused.tile(shapes)),
            ("NUMBERS", piece),
            ("PIECES_PER_LINE", fused.depth() / piece),
            ("PIECES_PER_HEAD", fused.pieces(shapes, piece)),
        ];
        self.pack_with(&[&constants(&sizes), include_str!("../../shaders/pack/fused.wgsl")])
    }
}
