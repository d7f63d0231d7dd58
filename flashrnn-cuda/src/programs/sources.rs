//! The kernel sources, each combined with a cell, element types and a layout.

use crate::call;
use crate::kernels::compile::Program;
use crate::select::alignment::copy_bytes;
use crate::select::fused::Fused;
use crate::select::grid::{Grid, Pass};
use crate::select::step::{Multiply, Tile};
use flashrnn_core::{Cell, Dtype, Shapes, trace};

/// The headers of the kernel sources.
const HEADERS: &[(&str, &str)] = &[
    ("cluster.cuh", include_str!("../../kernels/cluster.cuh")),
    ("element.cuh", include_str!("../../kernels/element.cuh")),
    ("math.cuh", include_str!("../../kernels/math.cuh")),
    ("operator.cuh", include_str!("../../kernels/operator.cuh")),
    ("fused/alignment.cuh", include_str!("../../kernels/fused/alignment.cuh")),
    ("fused/async_copy.cuh", include_str!("../../kernels/fused/async_copy.cuh")),
    ("fused/backward_compute.cuh", include_str!("../../kernels/fused/backward_compute.cuh")),
    ("fused/backward_io.cuh", include_str!("../../kernels/fused/backward_io.cuh")),
    ("fused/backward_shared.cuh", include_str!("../../kernels/fused/backward_shared.cuh")),
    ("fused/block.cuh", include_str!("../../kernels/fused/block.cuh")),
    ("fused/exchange.cuh", include_str!("../../kernels/fused/exchange.cuh")),
    ("fused/forward_compute.cuh", include_str!("../../kernels/fused/forward_compute.cuh")),
    ("fused/forward_io.cuh", include_str!("../../kernels/fused/forward_io.cuh")),
    ("fused/forward_shared.cuh", include_str!("../../kernels/fused/forward_shared.cuh")),
    ("fused/io_warps.cuh", include_str!("../../kernels/fused/io_warps.cuh")),
    ("fused/multiply_add.cuh", include_str!("../../kernels/fused/multiply_add.cuh")),
    ("fused/product.cuh", include_str!("../../kernels/fused/product.cuh")),
    ("fused/tensor_cores.cuh", include_str!("../../kernels/fused/tensor_cores.cuh")),
    ("grid/block.cuh", include_str!("../../kernels/grid/block.cuh")),
    ("grid/parts.cuh", include_str!("../../kernels/grid/parts.cuh")),
    ("grid/product.cuh", include_str!("../../kernels/grid/product.cuh")),
    ("grid/rows.cuh", include_str!("../../kernels/grid/rows.cuh")),
    ("grid/words.cuh", include_str!("../../kernels/grid/words.cuh")),
    ("delay.cuh", include_str!("../../kernels/delay.cuh")),
    ("mma.cuh", include_str!("../../kernels/mma.cuh")),
    ("outputs.cuh", include_str!("../../kernels/outputs.cuh")),
    ("step/overlap.cuh", include_str!("../../kernels/step/overlap.cuh")),
    ("step/product.cuh", include_str!("../../kernels/step/product.cuh")),
    ("step/tile.cuh", include_str!("../../kernels/step/tile.cuh")),
];

/// Holds a cell's functions as CUDA C++, which become the file `cell.cuh` of its kernels.
#[derive(Clone, Debug)]
pub struct CellSource {
    /// [`Cell::NAME`]
    pub name: &'static str,
    /// The struct `Cell` in CUDA C++.
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

/// Returns the program of the per-step forward kernels.
pub fn forward_step(cell: &CellSource, element: Dtype, multiply: Multiply, tile: Tile) -> Program {
    let source = include_str!("../../kernels/step/forward.cu");
    step_program("step/forward", source, cell, element, multiply, tile)
}

/// Returns the program of the per-step backward kernels.
pub fn backward_step(cell: &CellSource, element: Dtype, multiply: Multiply, tile: Tile) -> Program {
    let source = include_str!("../../kernels/step/backward.cu");
    step_program("step/backward", source, cell, element, multiply, tile)
}

fn step_program(
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

/// How the warps of a fused kernel synchronise. Tests vary this, because results must not depend on
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waits {
    /// The fastest way.
    #[default]
    Plain,
    /// As fast as possible, except that each warp sometimes waits for a random time.
    Delayed,
    /// Each wait for an mbarrier in a cluster also synchronises the block with a block barrier, the
    /// only kind of barrier that compute-sanitizer's racecheck understands.
    Block,
}

/// The features that a fused kernel is compiled with. Each feature takes time even in calls that do
/// not use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Whether the forward pass writes what the backward pass reads.
    pub saves: bool,
    /// Whether the call has lengths or resets.
    pub ragged: bool,
    /// Whether anything is clipped, or the recurrent gradient is cut.
    pub clips: bool,
    /// How warps synchronise.
    pub waits: Waits,
    /// The largest power of two, at most 16, that divides the addresses of all rows; `None` for the
    /// largest that D allows.
    pub copy_bytes: Option<usize>,
    /// Whether saved gates are `[tokens, N, D, G]`.
    pub interleaved: bool,
}

/// Returns the program of the fused forward pass.
pub fn fused_forward(
    cell: &CellSource,
    element: Dtype,
    shapes: &Shapes,
    layout: Fused,
    features: Features,
) -> Program {
    let file = ("fused/forward", include_str!("../../kernels/fused/forward.cu"));
    let shared = layout.forward_shared(shapes, bytes(element), features.saves);
    fused(file, cell, element, shapes, layout, shared, features)
}

/// Returns the program of the fused backward pass.
pub fn fused_backward(
    cell: &CellSource,
    element: Dtype,
    shapes: &Shapes,
    layout: Fused,
    features: Features,
) -> Program {
    let file = ("fused/backward", include_str!("../../kernels/fused/backward.cu"));
    let shared = layout.backward_shared(shapes, bytes(element));
    fused(file, cell, element, shapes, layout, shared, features)
}

fn fused(
    (file, source): (&str, &str),
    cell: &CellSource,
    element: Dtype,
    shapes: &Shapes,
    layout: Fused,
    shared: usize,
    features: Features,
) -> Program {
    let mut program = program(file, source, Some(cell), element);
    if element == Dtype::F32 {
        program.options.push("-DTENSOR_CORES=0".into());
    } else {
        program.options.push("-DTENSOR_CORES=1".into());
        program.options.extend(of_16_bits(element));
    }
    let row_bytes = copy_bytes(shapes, bytes(element));
    program.options.extend(of_the_loop(shapes, [layout.blocks, layout.units, layout.rows], shared));
    program.options.extend(of_features(features));
    program.options.extend([
        format!("-DCOMPUTE_WARPS={}", layout.compute_warps),
        format!("-DSPLIT_K={}", layout.split_k),
        format!("-DTILES_PER_WARP={}", layout.tiles_per_warp),
        format!("-DIO_WARPS={}", layout.io_warps),
        format!("-DSTAGES={}", layout.stages),
        format!("-DCOPY_BYTES={}", features.copy_bytes.unwrap_or(row_bytes)),
        format!("-DINTERLEAVED={}", i32::from(features.interleaved)),
        format!("-DSAVES={}", i32::from(features.saves)),
    ]);
    program
}

/// Returns the sizes that every kernel of all time steps is compiled for. `shared` is its shared
/// memory in bytes.
fn of_the_loop(shapes: &Shapes, [blocks, units, rows]: [usize; 3], shared: usize) -> [String; 5] {
    [
        format!("-DHEAD_DIM={}", shapes.head_dim),
        format!("-DBLOCKS={blocks}"),
        format!("-DUNITS={units}"),
        format!("-DROWS={rows}"),
        format!("-DSHARED_BYTES={shared}"),
    ]
}

/// Returns the features that every kernel of all time steps has.
fn of_features(features: Features) -> [String; 4] {
    [
        format!("-DRAGGED={}", i32::from(features.ragged)),
        format!("-DCLIPS={}", i32::from(features.clips)),
        format!("-DDELAYS={}", i32::from(features.waits == Waits::Delayed)),
        format!("-DBLOCK_BARRIERS={}", i32::from(features.waits == Waits::Block)),
    ]
}

/// Returns the options for kernels of 16-bit tensors on the tensor cores.
fn of_16_bits(element: Dtype) -> [String; 5] {
    let bf16 = element == Dtype::Bf16;
    [
        // In f32, subnormals and the last bits of a quotient are far smaller than the rounding
        // errors of 16-bit tensors.
        "--ftz=true".into(),
        "--prec-div=false".into(),
        "--prec-sqrt=false".into(),
        format!("-DT_IS_BF16={}", i32::from(bf16)),
        format!("-DMATH={}", if bf16 { "HARDWARE_BF16" } else { "HARDWARE_F16" }),
    ]
}

/// Returns the program of the grid kernel of a pass.
pub fn grid(
    cell: &CellSource,
    element: Dtype,
    shapes: &Shapes,
    layout: Grid,
    pass: Pass,
    features: Features,
) -> Program {
    let (file, source) = match pass {
        Pass::Forward => ("grid/forward", include_str!("../../kernels/grid/forward.cu")),
        Pass::Backward => ("grid/backward", include_str!("../../kernels/grid/backward.cu")),
    };
    let mut program = program(file, source, Some(cell), element);
    program.options.extend(of_16_bits(element));
    let shared = layout.shared(shapes, pass);
    program.options.extend(of_the_loop(shapes, [layout.blocks, layout.units, layout.rows], shared));
    program.options.extend(of_features(features));
    program.options.extend([
        format!("-DCLUSTER={}", layout.cluster),
        format!("-DREGISTER_STEPS={}", layout.register_steps),
        format!("-DHOLD={}", layout.hold),
        format!("-DSUM_BUFFERS={}", layout.sum_buffers),
    ]);
    program
}

/// Returns the program of the kernels that process all tokens at once, outside the backward time
/// loop.
pub fn recompute(cell: &CellSource, element: Dtype) -> Program {
    program("recompute", include_str!("../../kernels/recompute.cu"), Some(cell), element)
}

/// Returns the program that packs R and b and sums their gradients.
pub fn weight_grad(element: Dtype, weight: Dtype) -> Program {
    let mut program =
        program("weight_grad", include_str!("../../kernels/weight_grad.cu"), None, element);
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

/// Returns the size of an element in bytes.
pub(super) fn bytes(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F16 | Dtype::Bf16 => 2,
        Dtype::F32 => 4,
        Dtype::F64 => 8,
    }
}

/// Returns the name that the kernels use for an element type.
fn element_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        Dtype::F32 => "float",
        Dtype::F64 => "double",
    }
}
