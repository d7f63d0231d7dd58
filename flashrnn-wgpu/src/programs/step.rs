//! The programs of the kernels that run one time step.

use flashrnn_core::Shapes;

use super::template::expand;
use super::tensors::{Tensor, TensorSet};
use super::{Program, Programs, constants};
use crate::select::Tile;

const PRODUCT: &str = include_str!("../../shaders/step/product.wgsl");

impl Programs {
    /// Builds the program that runs one time step of the forward pass.
    pub fn forward_step(&self, shapes: &Shapes, word_aligned: bool) -> Program {
        let tile = Tile::forward(shapes, self.adapter);
        let file = include_str!("../../shaders/step/forward.wgsl");
        self.step(self.forward_tensors(word_aligned), shapes, tile, "pieces()", file)
    }

    /// Builds the program that runs one time step of the backward pass.
    pub fn backward_step(&self, shapes: &Shapes, word_aligned: bool) -> Program {
        let tile = Tile::backward(shapes, self.adapter);
        let file = include_str!("../../shaders/step/backward.wgsl");
        let text = [&self.gates_row(), file].concat();
        let tensors = self.backward_tensors(word_aligned);
        self.step(tensors, shapes, tile, "RECURRENT * pieces()", &text)
    }

    /// Expands and joins a step's files. `length` is the number of pieces of a line of weights, as
    /// a WGSL expression.
    fn step<S: TensorSet<Tensor>>(
        &self,
        tensors: S,
        shapes: &Shapes,
        tile: Tile,
        length: &str,
        file: &str,
    ) -> Program {
        let declared = [
            ("LINES", tile.lines),
            ("PARTS", tile.parts),
            ("PIECES", tile.pieces),
            ("ROUNDS", tile.rounds),
            ("AT_ONCE", tile.at_once),
            ("ADDERS", tile.adders()),
            ("SUBGROUP_PARTS", tile.subgroup_parts),
            ("PADDED_LINES", tile.padded_lines()),
            ("SUBGROUP", self.adapter.subgroup),
        ];
        let in_text_only = [
            ("LOADS", tile.loads()),
            ("FOURS", tile.padded_lines() / 4),
            ("STATES", shapes.states),
            ("GATES", shapes.gates),
            ("RECURRENT", shapes.recurrent),
            ("INNER", shapes.inner()),
        ];
        let sums = match tile.subgroup_parts {
            1 => include_str!("../../shaders/step/sums.wgsl"),
            _ => include_str!("../../shaders/step/sums_subgroups.wgsl"),
        };
        let text = [PRODUCT, sums, file].join("\n");
        let text = expand(&text, &[&declared[..], &in_text_only].concat());
        let text = match tile.rounds {
            0 => text.replace("ROUNDS", &format!("(({length} + ROUND - 1u) / ROUND)")),
            _ => text,
        };
        self.program_of_cell(tensors, &[&constants(&declared), &text])
    }
}
