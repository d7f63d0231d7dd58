//! The parts of the backward pass that run before or beside its time loop, for all tokens at once:
//! the previous h of every step and, if they were not saved, the gates.

use std::sync::Arc;

use cudarc::driver::sys::CUstream;
use flashrnn_core::{Dtype, Result};

use crate::call::{Address, Gates, Sizes};
use crate::device::blas::{BlasScratch, Matrix, Product};
use crate::kernels::launch::{Kernel, Module, argument};
use crate::memory::scratch::Bump;
use crate::passes::Common;
use crate::passes::address_table::{AddressTable, Operand};

/// Maximum size in bytes of the products from which a chunk of gates is recomputed.
const MAX_PRODUCT_BYTES: usize = 64 << 20;

/// The kernels that prepare the backward pass.
pub(crate) struct Recompute {
    previous_h: Kernel,
    gates: Kernel,
    addresses: Kernel,
}

/// The layout of a call's rows: the sizes, and the optional tensors that say where rows start and
/// end.
pub(crate) struct Rows {
    pub sizes: Sizes,
    pub s0: Address,
    pub lengths: Address,
    pub resets: Address,
}

impl Recompute {
    /// Gets the kernels from the modules of `programs::recompute` and `programs::weight_grad`.
    pub(crate) fn new(recompute: &Arc<Module>, weight_grad: &Arc<Module>) -> Result<Self> {
        Ok(Self {
            previous_h: recompute.kernel("previous_h")?,
            gates: recompute.kernel("recompute_gates")?,
            addresses: weight_grad.kernel("addresses")?,
        })
    }

    /// Enqueues the gathering of h before every step from `states [S, tokens, N, D]` into
    /// `out [tokens, N, depth]`.
    pub(crate) fn previous_h(
        &self,
        common: &Common,
        stream: CUstream,
        rows: &Rows,
        states: Address,
        out: Address,
    ) -> Result<()> {
        let Rows { mut sizes, mut s0, mut lengths, mut resets } = *rows;
        let (mut h, mut out) = (states, out);
        let mut arguments = [
            argument(&mut sizes),
            argument(&mut h),
            argument(&mut s0),
            argument(&mut lengths),
            argument(&mut resets),
            argument(&mut out),
        ];
        let len = 32 * common.shapes.tokens();
        // SAFETY: the kernel takes (Sizes, const T*, const float*, const int*, const unsigned
        // char*, T*).
        unsafe { common.launch_strided(stream, &self.previous_h, len, &mut arguments) }
    }

    /// Enqueues the computation of the gates of all tokens from `r [Gr, N, D, depth]`,
    /// `b [G, N, D]`, `wx [tokens, Gx, N, D]` and `previous_h [tokens, N, depth]`, in chunks of
    /// tokens.
    pub(crate) fn gates(
        &self,
        common: &Common,
        rows: &Rows,
        [r, b, wx, previous_h]: [Address; 4],
        gates: Gates,
        wide_gates: Address,
        scratch: &RecomputeScratch,
    ) -> Result<()> {
        let (shapes, depth) = (&common.shapes, common.depth);
        let (tokens, heads) = (shapes.tokens(), shapes.heads);
        if tokens == 0 {
            return Ok(());
        }
        let batch = shapes.recurrent * heads;
        let chunk = chunk(common);
        let matrix = shapes.head_dim * depth;
        let operands = [
            Operand::new(r, [0, heads * matrix, matrix], common.bytes),
            Operand::new(previous_h, [chunk * heads * depth, 0, depth], common.bytes),
            Operand::new(scratch.products, [0, heads * depth, depth], size_of::<f32>()),
        ];
        let counts = [tokens.div_ceil(chunk), shapes.recurrent, heads];
        let table =
            AddressTable::write(common, &self.addresses, scratch.addresses, operands, counts)?;
        let stream = common.stream();
        for (part, first) in (0..tokens).step_by(chunk).enumerate() {
            let count = chunk.min(tokens - first);
            let [r, h, products] = table.part(part);
            // Columns are tokens: for each gate g and head n,
            // products[g][n] (D x count) = R[g][n] (D x D, stored transposed) h[n] (D x count).
            let product = Product {
                a: Matrix { pointers: r, ld: depth, transposed: true },
                b: Matrix { pointers: h, ld: heads * depth, transposed: false },
                c: Matrix { pointers: products, ld: batch * depth, transposed: false },
                m: shapes.head_dim,
                n: count,
                k: shapes.head_dim,
                batch,
                input: common.element,
                output: Dtype::F32,
                tf32: common.problem.options.tf32,
            };
            // SAFETY: the table has been written, and the matrices and the scratch memory are in
            // live buffers.
            unsafe { common.device.context.blas()?.batched(stream, &product, scratch.blas)? };
            let (mut sizes, mut gates, mut wide_gates) = (rows.sizes, gates, wide_gates);
            let (mut first, mut many) = (first as i64, count as i64);
            let (mut products, mut wx, mut b) = (scratch.products, wx, b);
            let mut arguments = [
                argument(&mut sizes),
                argument(&mut first),
                argument(&mut many),
                argument(&mut products),
                argument(&mut wx),
                argument(&mut b),
                argument(&mut gates),
                argument(&mut wide_gates),
            ];
            let len = count * shapes.units();
            // SAFETY: the kernel takes (Sizes, Offset, Offset, const float*, const T*, const
            // float*, Gates<T>, float*).
            unsafe { common.launch_strided(stream, &self.gates, len, &mut arguments)? };
        }
        Ok(())
    }
}

/// Returns the number of tokens per chunk of recomputed gates.
fn chunk(common: &Common) -> usize {
    let shapes = &common.shapes;
    let row = shapes.recurrent * shapes.heads * common.depth;
    (MAX_PRODUCT_BYTES / (row * size_of::<f32>()).max(1)).max(1).min(shapes.tokens())
}

/// The buffers of [`Recompute::gates`].
pub(crate) struct RecomputeScratch {
    /// `[chunk, Gr, N, depth]`
    products: Address,
    /// `[3, chunks, Gr, N]`
    addresses: Address,
    blas: BlasScratch,
}

impl RecomputeScratch {
    pub(crate) fn cut(common: &Common, bump: &mut Bump) -> Self {
        let (shapes, chunk) = (&common.shapes, chunk(common));
        let batch = shapes.recurrent * shapes.heads;
        Self {
            products: bump.take::<f32>(chunk * batch * common.depth),
            addresses: bump.take::<u64>(3 * batch * shapes.tokens().div_ceil(chunk.max(1))),
            blas: common.blas_scratch(bump),
        }
    }
}
