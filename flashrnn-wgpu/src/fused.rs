//! The programs of the fused kernels, loops written out.

use flashrnn_core::Shapes;

use crate::programs::{Common, Program, Tensor};
use crate::select::{FUSED_STEPS, Fused};
use crate::unroll::unroll;

const FUSED: &str = include_str!("../shaders/fused.wgsl");

impl Common {
    /// A fused kernel of `file`, whose threads carry in so many tensors.
    fn fused(
        &self,
        tensors: Vec<Tensor>,
        fused: Fused,
        shapes: &Shapes,
        carried: usize,
        file: &str,
    ) -> Program {
        let Fused { units, split, rows } = fused;
        let sizes = [
            ("UNITS", units),
            ("SPLIT", split),
            ("ROWS", rows),
            ("STEPS", FUSED_STEPS),
            ("TILE", fused.tile(shapes)),
        ];
        let constants: String =
            sizes.iter().map(|(name, size)| format!("const {name} = {size}u;\n")).collect();
        let of_text = [
            ("STATES", shapes.states),
            ("GATES", shapes.gates),
            ("RECURRENT", shapes.recurrent),
            ("INNER", shapes.inner()),
            ("DEPTH", fused.depth()),
            ("PARTS", shapes.recurrent * split),
            ("LOADS", carried.div_ceil(fused.turns())),
        ];
        let kernel = unroll(file, &[&sizes[..], &of_text].concat());
        self.of_cell(tensors, &[&constants, FUSED, &kernel])
    }

    /// The forward pass's time steps.
    pub fn fused_forward(&self, fused: Fused, shapes: &Shapes, words: bool) -> Program {
        let file = include_str!("../shaders/fused_forward.wgsl");
        self.fused(self.forward_tensors(words), fused, shapes, shapes.external, file)
    }

    /// The backward pass's time steps.
    pub fn fused_backward(&self, fused: Fused, shapes: &Shapes, words: bool) -> Program {
        let file = self.recomputed() + include_str!("../shaders/fused_backward.wgsl");
        self.fused(self.backward_tensors(words), fused, shapes, shapes.gates + 2 * shapes.states, &file)
    }
}
