//! The shader files put together for a cell and element types.

mod fused;
mod template;

use flashrnn_core::{Dtype, Shapes};

use crate::call::Params;
use crate::programs::template::unroll;
use crate::select::{Adapter, GROUPS_X, Gradient, Tile};

const PARAMS: &str = include_str!("../../shaders/params.wgsl");
const MATH: &str = include_str!("../../shaders/math.wgsl");
const ELEMENT: &str = include_str!("../../shaders/element.wgsl");
const WIDEN_F16: &str = include_str!("../../shaders/widen_f16.wgsl");
const ROUNDED: &str = include_str!("../../shaders/rounded.wgsl");
const OPERATOR: &str = include_str!("../../shaders/operator.wgsl");
const PREVIOUS_H: &str = include_str!("../../shaders/previous_h.wgsl");
const FACTORS: &str = include_str!("../../shaders/gradient_factors.wgsl");
const WEIGHTS: &str = include_str!("../../shaders/weights.wgsl");
const STEP: &str = include_str!("../../shaders/step.wgsl");

/// One storage buffer of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// Its name in the shaders.
    pub name: &'static str,
    /// Whether it is bound for writing.
    pub written: bool,
    /// Whether 16-bit elements saturate when they are written, as states and gates do.
    saturates: bool,
    /// Whether it is bound for writing, since its buffer holds something else that is written, but
    /// only read.
    only_read: bool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Elements behind `load_` and `store_` functions.
    Elements(Dtype),
    /// Elements that are read or written in pairs, each a word if they have 16 bits.
    Pairs(Dtype),
    /// An array of this WGSL type.
    Plain(&'static str),
}

impl Tensor {
    fn read(name: &'static str, dtype: Dtype) -> Self {
        Self {
            name,
            written: false,
            only_read: false,
            saturates: false,
            kind: Kind::Elements(dtype),
        }
    }

    fn write(name: &'static str, dtype: Dtype) -> Self {
        Self {
            name,
            written: true,
            only_read: false,
            saturates: false,
            kind: Kind::Elements(dtype),
        }
    }

    /// Of a kernel of the time steps.
    fn pairs(name: &'static str, written: bool, dtype: Dtype, words: bool) -> Self {
        let kind = if words { Kind::Pairs(dtype) } else { Kind::Elements(dtype) };
        Self { name, written, only_read: false, saturates: false, kind }
    }

    /// The same tensor of states or gates, written.
    fn saturating(self) -> Self {
        Self { saturates: true, ..self }
    }

    fn plain(name: &'static str, written: bool, of: &'static str) -> Self {
        Self { name, written, only_read: false, saturates: false, kind: Kind::Plain(of) }
    }

    fn declaration(&self, binding: usize) -> String {
        let access = if self.written { "read_write" } else { "read" };
        match self.kind {
            Kind::Plain(of) => {
                format!(
                    "@group(0) @binding({binding}) var<storage, {access}> {}: array<{of}>;\n",
                    self.name
                )
            }
            Kind::Elements(dtype) | Kind::Pairs(dtype) => {
                let pairs = matches!(self.kind, Kind::Pairs(_));
                let template = match (self.written && !self.only_read, dtype, pairs) {
                    (false, Dtype::F32, false) => include_str!("../../shaders/read_32.wgsl"),
                    (false, Dtype::F32, true) => include_str!("../../shaders/read_32_pairs.wgsl"),
                    (false, _, false) => include_str!("../../shaders/read_16.wgsl"),
                    (false, _, true) => include_str!("../../shaders/read_16_pairs.wgsl"),
                    (true, Dtype::F32, _) => include_str!("../../shaders/write_32.wgsl"),
                    (true, _, false) => include_str!("../../shaders/write_16.wgsl"),
                    (true, _, true) => include_str!("../../shaders/write_16_pairs.wgsl"),
                };
                template
                    .replace("TENSOR", self.name)
                    .replace("ROUND", if self.saturates { "saturate" } else { "narrow" })
                    .replace("ACCESS", access)
                    .replace("FORMAT", &dtype.to_string())
                    .replace("BINDING", &binding.to_string())
            }
        }
    }
}

/// Sizes as constants of a shader.
pub(crate) fn declared(sizes: &[(&str, usize)]) -> String {
    sizes.iter().map(|(name, size)| format!("const {name} = {size}u;\n")).collect()
}

/// A shader's text, and the storage buffers it takes after the two uniform ones.
pub struct Program {
    pub source: String,
    pub tensors: Vec<Tensor>,
}

/// What the programs of a plan have in common.
#[derive(Clone)]
pub struct Common {
    /// The printed cell: its sizes.
    pub sizes: String,
    /// The printed cell: its functions, which only the kernels of the time steps need; the others
    /// serve all cells of equal sizes.
    pub functions: String,
    /// T
    pub element: Dtype,
    /// W
    pub weight: Dtype,
    /// Whether the driver's own conversion of f16 is exact.
    pub unpacks: bool,
    /// The device, with the subgroups that kernels may rely on.
    pub adapter: Adapter,
    /// Elements of k in a tile.
    pub chunk: usize,
    /// Whether the backward pass computes the gates again.
    pub recompute: bool,
}

impl Common {
    fn program(&self, tensors: Vec<Tensor>, files: &[&str]) -> Program {
        let mut source = format!(
            "const CHUNK = {}u;\nconst GROUPS_X = {GROUPS_X}u;\nconst NARROW = {};\n\n",
            self.chunk,
            self.narrow(),
        );
        let rounded = ROUNDED.replace("FORMAT", &self.element.to_string());
        let widen = if self.unpacks {
            include_str!("../../shaders/widen_f16_built_in.wgsl")
        } else {
            WIDEN_F16
        };
        for text in [&Params::STRUCT.wgsl(), PARAMS, ELEMENT, widen, &rounded, &self.sizes] {
            source.push_str(text);
            source.push('\n');
        }
        for (i, tensor) in tensors.iter().enumerate() {
            source.push_str(&tensor.declaration(i + 2));
        }
        for text in files {
            source.push('\n');
            source.push_str(text);
        }
        Program { source, tensors }
    }

    /// Whether T has 16 bits.
    pub(crate) fn narrow(&self) -> bool {
        self.element != Dtype::F32
    }

    fn weights() -> Tensor {
        Tensor::plain("weights", false, "vec4u")
    }

    fn work() -> Tensor {
        Tensor::plain("work", true, "u32")
    }

    /// The element type of the gates that the backward pass reads.
    fn gates(&self) -> Dtype {
        if self.recompute { Dtype::F32 } else { self.element }
    }

    /// With the cell's functions.
    pub(crate) fn of_cell(&self, tensors: Vec<Tensor>, files: &[&str]) -> Program {
        self.program(tensors, &[&[MATH, &self.functions, OPERATOR, WEIGHTS], files].concat())
    }

    /// For the backward kernels alone, so that the others are one for both ways to save.
    pub(crate) fn recomputed(&self) -> String {
        format!(
            "const RECOMPUTED = {};\n\n{}",
            self.recompute,
            include_str!("../../shaders/gates_row.wgsl")
        )
    }

    /// The tensors of a forward kernel.
    pub(crate) fn forward_tensors(&self, words: bool) -> Vec<Tensor> {
        let t = self.element;
        vec![
            Self::weights(),
            Tensor::pairs("wx", false, t, words),
            Self::work(),
            Tensor::pairs("h", true, t, words).saturating(),
            Tensor::pairs("states", true, t, words).saturating(),
            Tensor::pairs("gates", true, t, words).saturating(),
            Tensor::write("wide", Dtype::F32),
        ]
    }

    /// The tensors of a backward kernel.
    pub(crate) fn backward_tensors(&self, words: bool) -> Vec<Tensor> {
        let t = self.element;
        // Those computed again lie in scratch memory, as `work` does.
        let gates = Tensor::pairs("gates", false, self.gates(), words);
        let gates = Tensor { written: self.recompute, only_read: self.recompute, ..gates };
        vec![
            Self::weights(),
            Tensor::pairs("states", false, t, words),
            gates,
            Tensor::pairs("wide", false, Dtype::F32, words),
            Tensor::pairs("d_states", false, t, words),
            Self::work(),
            Tensor::pairs("d_wx", true, t, words),
        ]
    }

    /// A kernel of one step, loops written out; `length`: the pieces of a line of weights, in WGSL.
    fn step(
        &self,
        tensors: Vec<Tensor>,
        shapes: &Shapes,
        tile: Tile,
        length: &str,
        file: &str,
    ) -> Program {
        let constants = [
            ("LINES", tile.lines),
            ("PARTS", tile.parts),
            ("PIECES", tile.pieces),
            ("ROUNDS", tile.rounds),
            ("AT_ONCE", tile.at_once),
            ("ADDERS", tile.adders()),
            ("TOGETHER", tile.together),
            ("HELD", tile.held()),
            ("SUBGROUP", self.adapter.subgroup),
        ];
        let of_text = [
            ("LOADS", tile.loads()),
            ("FOURS", tile.held() / 4),
            ("STATES", shapes.states),
            ("GATES", shapes.gates),
            ("RECURRENT", shapes.recurrent),
            ("INNER", shapes.inner()),
        ];
        let sums = match tile.together {
            1 => include_str!("../../shaders/sums.wgsl"),
            _ => include_str!("../../shaders/sums_subgroups.wgsl"),
        };
        let text = unroll(&[STEP, sums, file].join("\n"), &[&constants[..], &of_text].concat());
        let text = match tile.rounds {
            0 => text.replace("ROUNDS", &format!("(({length} + ROUND - 1u) / ROUND)")),
            _ => text,
        };
        self.of_cell(tensors, &[&declared(&constants), &text])
    }

    pub fn forward_step(&self, shapes: &Shapes, words: bool) -> Program {
        let tile = Tile::forward(shapes, self.adapter);
        let file = include_str!("../../shaders/forward_step.wgsl");
        self.step(self.forward_tensors(words), shapes, tile, "pieces()", file)
    }

    pub fn backward_step(&self, shapes: &Shapes, words: bool) -> Program {
        let tile = Tile::backward(shapes, self.adapter);
        let text = [&self.recomputed(), include_str!("../../shaders/backward_step.wgsl")].concat();
        self.step(self.backward_tensors(words), shapes, tile, "RECURRENT * pieces()", &text)
    }

    pub fn gates_again(&self) -> Program {
        let t = self.element;
        let tensors = vec![
            Self::weights(),
            Tensor::read("wx", t),
            Tensor::read("states", t),
            Self::work(),
            Tensor::write("gates", Dtype::F32),
        ];
        self.program(
            tensors,
            &[OPERATOR, WEIGHTS, PREVIOUS_H, include_str!("../../shaders/gates_again.wgsl")],
        )
    }

    /// The gradients of R and b; `words`: pairs of 16-bit units are whole words.
    pub fn gradients(&self, Gradient { fours, at_once }: Gradient, words: bool) -> Program {
        let t = self.element;
        let tensors = vec![
            Tensor::pairs("states", false, t, words),
            Tensor::pairs("d_wx", false, t, words),
            Self::work(),
            Tensor::plain("partial", true, "f32"),
        ];
        let sizes = [("FOURS", fours), ("AT_ONCE", at_once)];
        let gradients = unroll(include_str!("../../shaders/gradients.wgsl"), &sizes);
        self.program(tensors, &[OPERATOR, PREVIOUS_H, FACTORS, &declared(&sizes), &gradients])
    }

    /// The gradient of R by cooperative matrices; `width`: of [`select::matrix_width`].
    pub fn matrix_gradient(&self, width: usize) -> Program {
        let t = self.element;
        let tensors = vec![
            Tensor::pairs("states", false, t, true),
            Tensor::pairs("d_wx", false, t, true),
            Self::work(),
            Tensor::plain("partial", true, "f32"),
        ];
        let sizes = [("OUTS", width / 64), ("INS", width / 32), ("PAIRS", width / 16)];
        let gradients = unroll(include_str!("../../shaders/gradients_matrix.wgsl"), &sizes);
        let width = declared(&[("WIDTH", width)]);
        let mut program =
            self.program(tensors, &[OPERATOR, PREVIOUS_H, FACTORS, &width, &gradients]);
        program.source.insert_str(0, "enable f16;\nenable wgpu_cooperative_matrix;\n\n");
        program
    }

    pub fn reduce(&self) -> Program {
        let tensors =
            vec![Tensor::plain("partial", false, "f32"), Tensor::write("out", self.weight)];
        self.program(tensors, &[&unroll(include_str!("../../shaders/reduce.wgsl"), &[])])
    }

    pub fn pack(&self) -> Program {
        self.pack_with(&[include_str!("../../shaders/pack.wgsl")])
    }

    /// A kernel that packs weights.
    pub(crate) fn pack_with(&self, files: &[&str]) -> Program {
        let tensors = vec![
            Tensor::read("r", self.weight),
            Tensor::read("b", self.weight),
            Tensor::plain("weights", true, "vec4u"),
        ];
        self.program(tensors, &[&[WEIGHTS], files].concat())
    }
}

/// What tells whether the driver's conversion of f16 is exact.
pub fn unpacks() -> Program {
    probing("atomic<u32>", &[WIDEN_F16], include_str!("../../shaders/unpacks.wgsl"))
}

/// What tells whether subgroups are as the kernels of one step need them.
pub fn subgroups() -> Program {
    probing("atomic<u32>", &[], include_str!("../../shaders/subgroups.wgsl"))
}

/// What tells whether the driver runs long loops to their end.
pub fn probe() -> Program {
    probing("u32", &[], include_str!("../../shaders/probe.wgsl"))
}

/// A kernel whose result, of this WGSL type, tells of the driver.
fn probing(result: &'static str, files: &[&str], kernel: &str) -> Program {
    let tensors = vec![Tensor::plain("result", true, result)];
    let mut source = format!("const GROUPS_X = {GROUPS_X}u;\n\n");
    for text in [&[&Params::STRUCT.wgsl(), PARAMS][..], files].concat() {
        source.push_str(text);
        source.push('\n');
    }
    source.push_str(&tensors[0].declaration(2));
    source.push_str(kernel);
    Program { source, tensors }
}
