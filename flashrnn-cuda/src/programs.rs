//! The programs of this crate: kernel files, with the cell, element types and tile of each.

use flashrnn_core::{Cell, Dtype, Shapes, trace};

use crate::call;
use crate::device::Waits;
use crate::kernels::compile::Program;
use crate::select::fused::{self as spread, Fused};
use crate::select::step::{self as select, Gpu, Multiply, Tile};

/// The files that kernels include.
const HEADERS: &[(&str, &str)] = &[
    ("element.cuh", include_str!("../kernels/element.cuh")),
    ("math.cuh", include_str!("../kernels/math.cuh")),
    ("operator.cuh", include_str!("../kernels/operator.cuh")),
    ("fused/exchange.cuh", include_str!("../kernels/fused/exchange.cuh")),
    ("fused/io_warps.cuh", include_str!("../kernels/fused/io_warps.cuh")),
    ("fused/multiply_add.cuh", include_str!("../kernels/fused/multiply_add.cuh")),
    ("fused/tensor_cores.cuh", include_str!("../kernels/fused/tensor_cores.cuh")),
    ("step/overlap.cuh", include_str!("../kernels/step/overlap.cuh")),
    ("step/product.cuh", include_str!("../kernels/step/product.cuh")),
];

/// A cell's functions as CUDA C++, the file `cell.cuh` of its kernels.
#[derive(Clone, Debug)]
pub struct CellSource {
    /// [`Cell::NAME`]
    pub name: &'static str,
    /// The struct `Cell`.
    pub text: String,
}

impl CellSource {
    /// Traces and prints `cell`.
    pub fn new<C: Cell>(cell: &C) -> Self {
        Self { name: C::NAME, text: trace::print::cuda::cell(cell) }
    }

    fn header(&self) -> (String, String) {
        ("cell.cuh".into(), format!("#pragma once\n#include \"math.cuh\"\n{}", self.text))
    }
}

/// One step of the forward pass.
pub fn forward_step(cell: &CellSource, element: Dtype, multiply: Multiply, tile: Tile) -> Program {
    let source = include_str!("../kernels/step/forward.cu");
    step("step/forward", source, cell, element, multiply, tile)
}

/// One step of the backward pass.
pub fn backward_step(cell: &CellSource, element: Dtype, multiply: Multiply, tile: Tile) -> Program {
    let source = include_str!("../kernels/step/backward.cu");
    step("step/backward", source, cell, element, multiply, tile)
}

fn step(
    file: &str,
    source: &str,
    cell: &CellSource,
    element: Dtype,
    multiply: Multiply,
    tile: Tile,
) -> Program {
    let mut program = program(file, source, Some(cell), element);
    program.options.extend([
        format!("-DMULTIPLY={}", format!("{multiply:?}").to_uppercase()),
        format!("-DUNITS={}", tile.units),
        format!("-DROWS={}", tile.rows),
        format!("-DWARPS={}", tile.warps),
    ]);
    program
}

/// What a fused kernel can be compiled without, where it is not used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Forward: it writes what a backward pass needs.
    pub saves: bool,
    /// There are lengths or resets.
    pub ragged: bool,
    /// There is a clip, or the recurrent gradient is cut.
    pub clips: bool,
    pub waits: Waits,
    /// What divides the addresses of all tensors, of 16, 8, 4 and 2 bytes; `None` for all that D
    /// elements allow.
    pub copy_bytes: Option<usize>,
    /// Saved gates are `[tokens, N, D, G]`.
    pub interleaved: bool,
}

/// The forward pass of all steps.
pub fn fused_forward(
    cell: &CellSource,
    element: Dtype,
    shapes: &Shapes,
    fused: Fused,
    uses: Uses,
) -> Program {
    let file = ("fused/forward", include_str!("../kernels/fused/forward.cu"));
    self::fused(
        file,
        cell,
        element,
        shapes,
        fused,
        fused.forward_shared(shapes, bytes(element), uses.saves),
        uses,
    )
}

/// The backward pass of all steps.
pub fn fused_backward(
    cell: &CellSource,
    element: Dtype,
    shapes: &Shapes,
    fused: Fused,
    uses: Uses,
) -> Program {
    let file = ("fused/backward", include_str!("../kernels/fused/backward.cu"));
    self::fused(
        file,
        cell,
        element,
        shapes,
        fused,
        fused.backward_shared(shapes, bytes(element)),
        uses,
    )
}

fn fused(
    (file, source): (&str, &str),
    cell: &CellSource,
    element: Dtype,
    shapes: &Shapes,
    fused: Fused,
    shared: usize,
    uses: Uses,
) -> Program {
    let mut program = program(file, source, Some(cell), element);
    if element == Dtype::F32 {
        program.options.push("-DTENSOR_CORES=0".into());
    } else {
        let bf16 = element == Dtype::Bf16;
        program.options.extend([
            // What follows from 16-bit tensors: subnormal f32 and the last bits of a quotient are
            // below their rounding.
            "--ftz=true".into(),
            "--prec-div=false".into(),
            "--prec-sqrt=false".into(),
            "-DTENSOR_CORES=1".into(),
            format!("-DT_IS_BF16={}", i32::from(bf16)),
            format!("-DMATH={}", if bf16 { "HARDWARE_BF16" } else { "HARDWARE_F16" }),
        ]);
    }
    let row_bytes = spread::copy_bytes(shapes, bytes(element));
    program.options.extend([
        format!("-DHEAD_DIM={}", shapes.head_dim),
        format!("-DBLOCKS={}", fused.blocks),
        format!("-DUNITS={}", fused.units),
        format!("-DROWS={}", fused.rows),
        format!("-DCOMPUTE_WARPS={}", fused.warps),
        format!("-DSPLIT_K={}", fused.split),
        format!("-DTILES_PER_WARP={}", fused.of_warp),
        format!("-DIO_WARPS={}", fused.helpers),
        format!("-DSTAGES={}", fused.stages),
        format!("-DSHARED_BYTES={shared}"),
        format!("-DCOPY_BYTES={}", uses.copy_bytes.unwrap_or(row_bytes)),
        format!("-DINTERLEAVED={}", i32::from(uses.interleaved)),
        format!("-DSAVES={}", i32::from(uses.saves)),
        format!("-DRAGGED={}", i32::from(uses.ragged)),
        format!("-DCLIPS={}", i32::from(uses.clips)),
        format!("-DDELAYS={}", i32::from(uses.waits == Waits::Delayed)),
        format!("-DBLOCK_BARRIERS={}", i32::from(uses.waits == Waits::Block)),
    ]);
    program
}

/// What is computed for all tokens at once around the backward pass.
pub fn tokens(cell: &CellSource, element: Dtype) -> Program {
    program("recompute", include_str!("../kernels/recompute.cu"), Some(cell), element)
}

/// Packing R and b, and summing their gradients.
pub fn weights(element: Dtype, weight: Dtype) -> Program {
    let mut program =
        program("weight_grad", include_str!("../kernels/weight_grad.cu"), None, element);
    program.options.push(format!("-DWEIGHT={}", element_name(weight)));
    program
}

fn program(file: &str, source: &str, cell: Option<&CellSource>, element: Dtype) -> Program {
    let headers = HEADERS.iter().map(|&(name, text)| (name.to_string(), text.to_string()));
    Program {
        name: format!("kernels/{file}.cu"),
        source: source.into(),
        headers: headers
            .chain([("call.cuh".into(), call::header())])
            .chain(cell.map(CellSource::header))
            .collect(),
        options: vec![format!("-DELEMENT={}", element_name(element))],
    }
}

/// Bytes of an element.
fn bytes(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F16 | Dtype::Bf16 => 2,
        Dtype::F32 => 4,
        Dtype::F64 => 8,
    }
}

/// The name of an element type in the kernels.
fn element_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        Dtype::F32 => "float",
        Dtype::F64 => "double",
    }
}

/// Every program of a cell, for each element type and each tile that [`select`] can choose for
/// batches, head dimensions and gates of any size, and the fused programs of some head dimensions:
/// what a test without a device compiles.
pub fn all<C: Cell>(cell: &C, gpu: Gpu) -> Vec<Program> {
    let cell = CellSource::new(cell);
    let mut list = Vec::new();
    // Rows of every alignment, in one block and in clusters.
    let head_dims = |element| match element {
        Dtype::F32 => &[33, 50, 128][..],
        Dtype::F16 => &[33, 64, 256, 512],
        _ => &[33, 50, 64, 100, 256, 257, 300, 512],
    };
    for element in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
        for &head_dim in head_dims(element) {
            let Ok(shapes) = flashrnn_core::Problem::new(16, 1, 3, head_dim).shapes::<C>() else {
                continue;
            };
            // The fewest and the most instructions, and what training is without options.
            let training = Uses { saves: true, ..Uses::default() };
            let interleaved = spread::interleaves(&shapes, bytes(element));
            let training = Uses { interleaved, ..training };
            for uses in [Uses::default(), training, Uses { ragged: true, clips: true, ..training }]
            {
                if let Some(fused) = spread::fused_forward(&shapes, bytes(element), gpu) {
                    list.push(fused_forward(&cell, element, &shapes, fused, uses));
                }
                let backward = spread::fused_backward(&shapes, bytes(element), gpu);
                if let Some(fused) = backward.filter(|_| uses.saves) {
                    list.push(fused_backward(&cell, element, &shapes, fused, uses));
                }
            }
        }
    }
    for element in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        list.push(tokens(&cell, element));
        for weight in [element, Dtype::F32] {
            list.push(weights(element, weight));
        }
        for tf32 in [false, true] {
            let multiply = Multiply::new(element, tf32);
            for (batch, head_dim) in [(1, 16), (1, 4096), (16, 16), (16, 4096)] {
                let problem = flashrnn_core::Problem::new(batch, 1, 1, head_dim);
                let Ok(shapes) = problem.shapes::<C>() else { continue };
                let bytes = bytes(element);
                let (forward, backward) =
                    (select::forward_tile(&shapes, bytes), select::backward_tile(&shapes, bytes));
                list.push(forward_step(&cell, element, multiply, forward));
                list.push(backward_step(&cell, element, multiply, backward));
            }
        }
    }
    let mut unique: Vec<Program> = Vec::new();
    for program in list {
        if !unique.contains(&program) {
            unique.push(program);
        }
    }
    unique
}
