//! The programs of the weights' gradients.

use super::template::expand;
use super::tensors::{GradTensors, ReduceTensors, Tensor};
use super::{OPERATOR, PREVIOUS_H, Program, Programs, constants};
use crate::select::GradTile;

const FACTORS: &str = include_str!("../../shaders/weight_grad/factors.wgsl");

impl Programs {
    /// Builds the program that sums d_r and d_b in parts, by the kernels `weight_grad` and
    /// `bias_grad`.
    pub fn weight_grad(&self, tile: GradTile, word_aligned: bool) -> Program {
        let sizes = [("FOURS", tile.fours), ("AT_ONCE", tile.at_once)];
        let kernels = expand(include_str!("../../shaders/weight_grad/tiles.wgsl"), &sizes);
        let files = [OPERATOR, PREVIOUS_H, FACTORS, &constants(&sizes), &kernels];
        self.program(self.grad_tensors(word_aligned), &files)
    }

    /// Builds the program that sums d_r in parts by cooperative matrices, in tiles of `width` x
    /// `width`, 64 or 128.
    pub fn weight_grad_matrices(&self, width: usize) -> Program {
        let sizes = [("OUTS", width / 64), ("INS", width / 32), ("PAIRS", width / 16)];
        let kernel = expand(include_str!("../../shaders/weight_grad/matrices.wgsl"), &sizes);
        let width = constants(&[("WIDTH", width)]);
        let files = [OPERATOR, PREVIOUS_H, FACTORS, &width, &kernel];
        let mut program = self.program(self.grad_tensors(true), &files);
        program.source.insert_str(0, "enable f16;\nenable wgpu_cooperative_matrix;\n\n");
        program
    }

    fn grad_tensors(&self, word_aligned: bool) -> GradTensors<Tensor> {
        let read = Tensor::read(self.element).pairs(word_aligned);
        let partial = Tensor::write_plain("f32");
        GradTensors { states: read, d_wx: read, work: Self::work(), partial }
    }

    /// Builds the program that adds partial sums.
    pub fn reduce(&self) -> Program {
        let tensors =
            ReduceTensors { partial: Tensor::read_plain("f32"), out: Tensor::write(self.weight) };
        let kernel = expand(include_str!("../../shaders/weight_grad/reduce.wgsl"), &[]);
        self.program(tensors, &[&kernel])
    }
}
