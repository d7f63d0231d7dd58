//! The gradients of R and b. `d_r` is a batched product over the tokens, `d_b` a sum of columns.
//! Both are computed in parts, which are added in a fixed order.

use std::sync::Arc;

use cudarc::driver::sys::CUstream;
use flashrnn_core::{Dtype, Result};

use crate::call::{Address, Gates};
use crate::device::blas::{BlasScratch, Matrix, Product};
use crate::kernels::launch::{Kernel, Launch, Module, argument, grid};
use crate::memory::scratch::Bump;
use crate::passes::Common;
use crate::passes::address_table::{AddressTable, Operand};
use crate::select::weight_grad::{Parts, parts};

/// The kernels that compute the gradients of the weights.
pub(crate) struct WeightGrad {
    pad: Kernel,
    column_sums: Kernel,
    addresses: Kernel,
    reduce: Kernel,
}

impl WeightGrad {
    /// Gets the kernels from the modules of `programs::recompute` and `programs::weight_grad`.
    pub(crate) fn new(recompute: &Arc<Module>, weight_grad: &Arc<Module>) -> Result<Self> {
        Ok(Self {
            pad: recompute.kernel("pad")?,
            column_sums: recompute.kernel("column_sums")?,
            addresses: weight_grad.kernel("addresses")?,
            reduce: weight_grad.kernel("reduce")?,
        })
    }

    /// Enqueues the computation of `d_r [Gr, N, D_out, D_in]` from dg and
    /// `previous_h [tokens, N, depth]`.
    pub(crate) fn d_r(
        &self,
        common: &Common,
        d_gates: Gates,
        previous_h: Address,
        d_r: Address,
        accumulate: bool,
        scratch: &WeightGradScratch,
    ) -> Result<()> {
        let (shapes, depth) = (&common.shapes, common.depth);
        let (heads, head_dim, recurrent) = (shapes.heads, shapes.head_dim, shapes.recurrent);
        let Parts { whole, length, rest, total } = row_parts(common);
        let stream = common.stream();
        // partial: [total, Gr, N, D, depth]
        let matrix = head_dim * depth;
        let mut table = scratch.addresses;
        for gates in recurrent_gates(common, d_gates, scratch.padded) {
            let gates = self.aligned(common, gates)?;
            let out =
                scratch.partial + (gates.first * heads * matrix * size_of::<f32>()) as Address;
            let h_strides = [length * heads * depth, 0, depth];
            let dg_strides = [length * gates.token, heads * gates.head, gates.head];
            let out_strides = [recurrent * heads * matrix, heads * matrix, matrix];
            let operands = [
                Operand::new(previous_h, h_strides, common.bytes),
                Operand::new(gates.address, dg_strides, common.bytes),
                Operand::new(out, out_strides, size_of::<f32>()),
            ];
            let counts = [total, gates.count, heads];
            let addresses = AddressTable::write(common, &self.addresses, table, operands, counts)?;
            table += (3 * total * gates.count * heads * size_of::<u64>()) as Address;
            for (first, parts, length) in [(0, whole, length), (whole, 1, rest)] {
                if length == 0 {
                    continue;
                }
                let [h, dg, out] = addresses.part(first);
                // Column-major: partial (D_in x D_out) = h (D_in x tokens) dg (tokens x D_out).
                let product = Product {
                    a: Matrix { pointers: h, ld: heads * depth, transposed: false },
                    b: Matrix { pointers: dg, ld: gates.token, transposed: true },
                    c: Matrix { pointers: out, ld: depth, transposed: false },
                    m: head_dim,
                    n: head_dim,
                    k: length,
                    batch: parts * gates.count * heads,
                    input: common.element,
                    output: Dtype::F32,
                    tf32: common.problem.options.tf32,
                };
                // SAFETY: the table has been written, and the matrices and the scratch memory are
                // in live buffers.
                unsafe { common.device.context.blas()?.batched(stream, &product, scratch.blas)? };
            }
        }
        let partial = Partial {
            address: scratch.partial,
            parts: total,
            rows: recurrent * heads * head_dim,
            length: head_dim,
            stride: depth,
        };
        self.reduce(common, stream, partial, d_r, accumulate)
    }

    /// Enqueues the computation of `d_b [G, N, D]` from dg. The partial sums are in
    /// `partial [parts, G, N, D]`, where the gates of `d_gates.inner` come first.
    pub(crate) fn d_b(
        &self,
        common: &Common,
        stream: CUstream,
        d_gates: Gates,
        partial: Address,
        d_b: Address,
        accumulate: bool,
    ) -> Result<()> {
        let shapes = &common.shapes;
        let units = shapes.units();
        let columns = shapes.gates * units;
        let (total, length) = column_parts(common);
        let inner = (d_gates.inner, shapes.inner() * units, 0);
        let external = (d_gates.external, shapes.external * units, shapes.inner() * units);
        for (rows, columns_here, first) in [inner, external] {
            if columns_here == 0 || total == 0 {
                continue;
            }
            let (mut rows, mut count, mut columns_here) =
                (rows, shapes.tokens() as i64, columns_here as i64);
            let (mut length, mut stride) = (length as i64, columns as i64);
            let mut out = partial + (first * size_of::<f32>()) as Address;
            let mut arguments = [
                argument(&mut rows),
                argument(&mut count),
                argument(&mut columns_here),
                argument(&mut length),
                argument(&mut out),
                argument(&mut stride),
            ];
            let [x, ..] = grid((columns_here as usize).div_ceil(256))?;
            let launch = Launch::new([x, total as u32, 1], 256);
            // SAFETY: the kernel takes (const T*, Offset, Offset, Offset, float*, Offset).
            unsafe { self.column_sums.launch(stream, &launch, &mut arguments)? };
        }
        let partial =
            Partial { address: partial, parts: total, rows: 1, length: columns, stride: columns };
        self.reduce(common, stream, partial, d_b, accumulate)
    }

    /// Returns the gates with every matrix at a multiple of 16 bytes, as the products require. If
    /// the gates are not aligned, enqueues a copy with padded rows.
    fn aligned(&self, common: &Common, gates: GateRows) -> Result<GateRows> {
        if (gates.head * common.bytes).is_multiple_of(16) && gates.address.is_multiple_of(16) {
            return Ok(gates);
        }
        let depth = common.depth;
        let rows = common.shapes.tokens() * gates.token / gates.head;
        let (mut from, mut count, mut out) = (gates.address, rows as i64, gates.padded);
        let (mut head_dim, mut depth_on) = (common.sizes.head_dim, common.sizes.depth);
        let mut arguments = [
            argument(&mut from),
            argument(&mut count),
            argument(&mut head_dim),
            argument(&mut depth_on),
            argument(&mut out),
        ];
        // SAFETY: the kernel takes (const T*, Offset, int, int, T*).
        unsafe { common.launch_strided(common.stream(), &self.pad, rows * depth, &mut arguments)? };
        let token = gates.token / gates.head * depth;
        Ok(GateRows { address: out, head: depth, token, ..gates })
    }

    /// Enqueues the sum of `partial` over its parts into `out [rows, length]`.
    fn reduce(
        &self,
        common: &Common,
        stream: CUstream,
        partial: Partial,
        out: Address,
        accumulate: bool,
    ) -> Result<()> {
        let Partial { address: mut partial, parts, rows, length, stride } = partial;
        let len = rows * length;
        let (mut out, mut parts, mut accumulate) = (out, parts as i32, i32::from(accumulate));
        let [mut rows, mut length, mut stride] = [rows, length, stride].map(|n| n as i64);
        let mut arguments = [
            argument(&mut partial),
            argument(&mut parts),
            argument(&mut rows),
            argument(&mut length),
            argument(&mut stride),
            argument(&mut out),
            argument(&mut accumulate),
        ];
        // SAFETY: the kernel takes (const float*, int, Offset, Offset, Offset, W*, int).
        unsafe { common.launch_strided(stream, &self.reduce, len, &mut arguments) }
    }
}

/// Partial sums `[parts, rows, stride]`. The first `length` elements of each row are used.
struct Partial {
    address: Address,
    parts: usize,
    rows: usize,
    length: usize,
    stride: usize,
}

/// Consecutive recurrent gates of all tokens, in one tensor `[tokens, gates, N, D]`, or with rows
/// of `depth` elements instead of D.
struct GateRows {
    address: Address,
    /// The buffer for a copy with aligned rows.
    padded: Address,
    /// Index of this tensor's first gate, counted among the recurrent gates.
    first: usize,
    /// Number of gates.
    count: usize,
    /// Elements per row of a head.
    head: usize,
    /// Elements per token, including all gates of the tensor.
    token: usize,
}

/// Returns dg of the recurrent gates: first those in the tensor of gates without external input,
/// then those in `d_wx`.
fn recurrent_gates(common: &Common, d_gates: Gates, padded: Gates) -> Vec<GateRows> {
    let shapes = &common.shapes;
    let (inner, head) = (shapes.inner(), shapes.head_dim);
    let part = |(address, padded), first: usize, end: usize, gates: usize| GateRows {
        address,
        padded,
        first,
        count: end.saturating_sub(first),
        head,
        token: gates * shapes.units(),
    };
    let parts = [
        part((d_gates.inner, padded.inner), 0, inner.min(shapes.recurrent), inner),
        part((d_gates.external, padded.external), inner, shapes.recurrent, shapes.external),
    ];
    parts.into_iter().filter(|part| part.count > 0).collect()
}

/// Returns the division of the tokens into parts for `d_r`.
fn row_parts(common: &Common) -> Parts {
    let shapes = &common.shapes;
    let tiles = shapes.head_dim.div_ceil(128);
    let blocks = shapes.recurrent * shapes.heads * tiles * tiles;
    Parts::new(shapes.tokens(), blocks, common.device.context.multiprocessors)
}

/// Returns the number of parts for the column sums of dg, and the tokens per part. The last part
/// may have fewer.
fn column_parts(common: &Common) -> (usize, usize) {
    let (tokens, columns) = (common.shapes.tokens(), common.shapes.gates * common.shapes.units());
    let multiprocessors = common.device.context.multiprocessors;
    let (_, length) = parts(tokens, columns.div_ceil(256), multiprocessors * 4);
    (tokens.div_ceil(length.max(1)), length)
}

/// Returns the number of elements of `partial` in [`WeightGrad::d_b`].
pub(crate) fn bias_partial_len(common: &Common) -> usize {
    column_parts(common).0 * common.shapes.gates * common.shapes.units()
}

/// The buffers of [`WeightGrad::d_r`].
pub(crate) struct WeightGradScratch {
    /// dg copied to rows of `depth` elements, for each tensor of gates whose rows are not aligned.
    padded: Gates,
    /// `[parts, Gr, N, D, depth]`
    partial: Address,
    /// `[3, parts, Gr, N]`
    addresses: Address,
    blas: BlasScratch,
}

impl WeightGradScratch {
    /// Allocates the buffers. `misaligned` says that `d_wx` does not start at a multiple of 16
    /// bytes.
    pub(crate) fn cut(common: &Common, bump: &mut Bump, misaligned: bool) -> Self {
        let (shapes, depth) = (&common.shapes, common.depth);
        let parts = row_parts(common);
        let matrices = parts.total * shapes.recurrent * shapes.heads;
        let pads = !(shapes.head_dim * common.bytes).is_multiple_of(16);
        let mut padded = |gates: usize, pads: bool| {
            let rows = if pads { shapes.tokens() * gates * shapes.heads } else { 0 };
            bump.take::<u8>(rows * depth * common.bytes)
        };
        Self {
            padded: Gates {
                external: padded(shapes.external, pads || misaligned),
                inner: padded(shapes.inner(), pads),
            },
            partial: bump.take::<f32>(matrices.saturating_mul(shapes.head_dim * depth)),
            addresses: bump.take::<u64>(3 * matrices),
            blas: common.blas_scratch(bump),
        }
    }
}
