//! Joins the shader files to programs, for a cell, its element types and the sizes of tiles.

mod fused;
mod step;
mod template;
pub mod tensors;
mod weight_grad;

use flashrnn_core::Dtype;

use self::tensors::{
    BackwardTensors, ForwardTensors, PackTensors, ProbeTensors, RecomputeTensors, Tensor, TensorSet,
};
use crate::call::{Params, Step};
use crate::select::{Adapter, MAX_GROUPS_X};

const PARAMS: &str = include_str!("../../shaders/params.wgsl");
const MATH: &str = include_str!("../../shaders/math.wgsl");
const ELEMENT: &str = include_str!("../../shaders/element.wgsl");
const WIDEN_F16: &str = include_str!("../../shaders/widen_f16.wgsl");
const WIDEN_F16_NATIVE: &str = include_str!("../../shaders/widen_f16_native.wgsl");
const ROUNDED: &str = include_str!("../../shaders/rounded.wgsl");
const OPERATOR: &str = include_str!("../../shaders/operator.wgsl");
const PREVIOUS_H: &str = include_str!("../../shaders/previous_h.wgsl");
const WEIGHTS: &str = include_str!("../../shaders/weights.wgsl");

/// A shader's text and its storage buffers, which are bound after the two uniform ones.
pub struct Program {
    /// The WGSL text.
    pub source: String,
    /// The storage buffers.
    pub tensors: Vec<Tensor>,
    /// The names of the storage buffers.
    pub(crate) names: &'static [&'static str],
}

impl Program {
    fn new<S: TensorSet<Tensor>>(tensors: S, before: &[&str], after: &[&str]) -> Self {
        let tensors = tensors.into_vec();
        let mut source = String::new();
        for text in before {
            source.push_str(text);
            source.push('\n');
        }
        for (i, (name, tensor)) in S::NAMES.iter().zip(&tensors).enumerate() {
            source.push_str(&tensor.declaration(name, i + 2));
        }
        for text in after {
            source.push('\n');
            source.push_str(text);
        }
        Self { source, tensors, names: S::NAMES }
    }
}

/// Prints sizes as constants of a shader.
fn constants(sizes: &[(&str, usize)]) -> String {
    sizes.iter().map(|(name, size)| format!("const {name} = {size}u;\n")).collect()
}

/// Prints the structs of the uniform buffers.
fn uniforms() -> String {
    [Params::STRUCT.wgsl(), Step::STRUCT.wgsl()].concat()
}

/// Builds the programs of a plan.
#[derive(Clone)]
pub struct Programs {
    /// The sizes of the printed cell.
    pub sizes: String,
    /// The functions of the printed cell. Only the kernels of the time steps need them; the others
    /// serve all cells with equal sizes.
    pub functions: String,
    /// The type `T` of the tensors.
    pub element: Dtype,
    /// The type `W` of the weights.
    pub weight: Dtype,
    /// Whether the driver converts f16 exactly.
    pub native_f16_exact: bool,
    /// The adapter, with the subgroups that kernels may use.
    pub adapter: Adapter,
    /// Elements along k in a tile of the kernel that recomputes gates.
    pub chunk: usize,
    /// Whether the backward pass recomputes the gates.
    pub recompute: bool,
}

impl Programs {
    fn program<S: TensorSet<Tensor>>(&self, tensors: S, files: &[&str]) -> Program {
        let narrow = self.narrow();
        let head = format!(
            "const CHUNK = {}u;\nconst MAX_GROUPS_X = {MAX_GROUPS_X}u;\nconst NARROW = {narrow};\n",
            self.chunk,
        );
        let rounded = ROUNDED.replace("FORMAT", &self.element.to_string());
        let widen = if self.native_f16_exact { WIDEN_F16_NATIVE } else { WIDEN_F16 };
        let before = [&head, &uniforms(), PARAMS, ELEMENT, widen, &rounded, &self.sizes];
        Program::new(tensors, &before, files)
    }

    /// Joins a program that needs the cell's functions.
    fn program_of_cell<S: TensorSet<Tensor>>(&self, tensors: S, files: &[&str]) -> Program {
        let common = [MATH, &self.functions, OPERATOR, WEIGHTS];
        self.program(tensors, &[&common, files].concat())
    }

    /// Returns whether T has 16 bits.
    pub(crate) fn narrow(&self) -> bool {
        self.element != Dtype::F32
    }

    fn packed_weights() -> Tensor {
        Tensor::read_plain("vec4u")
    }

    fn work() -> Tensor {
        Tensor::write_plain("u32")
    }

    fn forward_tensors(&self, word_aligned: bool) -> ForwardTensors<Tensor> {
        let written = Tensor::write(self.element).pairs(word_aligned).saturating();
        ForwardTensors {
            weights: Self::packed_weights(),
            wx: Tensor::read(self.element).pairs(word_aligned),
            work: Self::work(),
            h: written,
            states: written,
            gates: written,
            wide: Tensor::write(Dtype::F32),
        }
    }

    fn backward_tensors(&self, word_aligned: bool) -> BackwardTensors<Tensor> {
        let read = |dtype| Tensor::read(dtype).pairs(word_aligned);
        BackwardTensors {
            weights: Self::packed_weights(),
            states: read(self.element),
            // Recomputed gates share the scratch memory with `work`.
            gates: match self.recompute {
                true => read(Dtype::F32).shared(),
                false => read(self.element),
            },
            wide: read(Dtype::F32),
            d_states: read(self.element),
            work: Self::work(),
            d_wx: Tensor::write(self.element).pairs(word_aligned),
        }
    }

    /// Prints where the backward kernels find the gates. The other kernels do not depend on how
    /// gates are saved.
    fn gates_row(&self) -> String {
        let file = include_str!("../../shaders/gates_row.wgsl");
        format!("const RECOMPUTED = {};\n\n{file}", self.recompute)
    }

    /// Builds the program that recomputes the gates of some steps.
    pub fn recompute(&self) -> Program {
        let tensors = RecomputeTensors {
            weights: Self::packed_weights(),
            wx: Tensor::read(self.element),
            states: Tensor::read(self.element),
            work: Self::work(),
            gates: Tensor::write(Dtype::F32),
        };
        let file = include_str!("../../shaders/recompute.wgsl");
        self.program(tensors, &[OPERATOR, WEIGHTS, PREVIOUS_H, file])
    }

    /// Builds the program that packs R and b for all plans.
    pub fn pack(&self) -> Program {
        self.pack_with(&[include_str!("../../shaders/pack/step.wgsl")])
    }

    fn pack_with(&self, files: &[&str]) -> Program {
        let tensors = PackTensors {
            r: Tensor::read(self.weight),
            b: Tensor::read(self.weight),
            weights: Tensor::write_plain("vec4u"),
        };
        self.program(tensors, &[&[WEIGHTS], files].concat())
    }
}

/// Builds the probe that tests whether the driver runs long loops to their end.
pub fn long_loops() -> Program {
    probe("u32", &[], include_str!("../../shaders/probe/long_loops.wgsl"))
}

/// Builds the probe that tests whether the driver converts f16 exactly.
pub fn native_f16() -> Program {
    probe("atomic<u32>", &[WIDEN_F16], include_str!("../../shaders/probe/native_f16.wgsl"))
}

/// Builds the probe that tests whether subgroups are full and their shuffles work.
pub fn subgroups() -> Program {
    probe("atomic<u32>", &[], include_str!("../../shaders/probe/subgroups.wgsl"))
}

/// Builds a probe that writes to an array of the WGSL type `result`.
fn probe(result: &'static str, files: &[&str], kernel: &str) -> Program {
    let head = format!("const MAX_GROUPS_X = {MAX_GROUPS_X}u;\n");
    let uniforms = uniforms();
    let before = [&[&head, &uniforms, PARAMS], files].concat();
    Program::new(ProbeTensors { result: Tensor::write_plain(result) }, &before, &[kernel])
}
