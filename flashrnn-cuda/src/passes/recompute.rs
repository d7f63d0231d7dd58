//! What the backward pass computes for all tokens at once before its time loop: h before every
//! step, and the gates again.

use std::ffi::c_void;

use cudarc::driver::sys::CUstream;
use flashrnn_core::{Dtype, Result};

use crate::call::{Address, Gates, Sizes};
use crate::device::blas::{Matrix, Product};
use crate::engine::Engine;
use crate::kernels::launch::{Kernel, Launch};
use crate::memory::scratch::GatesAgainScratch;
use crate::passes::time_loop::argument;
use crate::passes::weight_grad::Operand;

/// What says where each row's steps lie and begin.
pub(crate) struct Rows {
    pub sizes: Sizes,
    pub s0: Address,
    pub lengths: Address,
    pub resets: Address,
}

/// The most bytes of products that the gates are computed from at a time.
const PRODUCTS: usize = 64 << 20;

impl Engine {
    /// Enqueues a kernel that goes over the work of `len` threads in strides.
    ///
    /// # Safety
    /// `arguments` are those of the kernel.
    pub(crate) unsafe fn over(
        &self,
        stream: CUstream,
        kernel: &Kernel,
        len: usize,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let most = self.device.shared.multiprocessors * 16;
        let blocks = len.div_ceil(256).min(most);
        // SAFETY: the caller's promise.
        unsafe { kernel.launch(stream, &Launch::new([blocks as u32, 1, 1], 256), arguments) }
    }

    /// From `states [S, tokens, N, D]` h before every step, `out [tokens, N, depth]`.
    pub(crate) fn previous_h(
        &self,
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
        // SAFETY: the kernel takes (Sizes, const T*, const float*, const int*, const unsigned
        // char*, T*).
        unsafe { self.over(stream, &self.previous_h, 32 * self.shapes.tokens(), &mut arguments) }
    }

    /// How many tokens' gates are computed again at a time.
    pub(crate) fn gates_again_chunk(&self) -> usize {
        let row = self.shapes.recurrent * self.shapes.heads * self.depth;
        (PRODUCTS / (row * size_of::<f32>()).max(1)).max(1).min(self.shapes.tokens())
    }

    /// The gates of all tokens from `r [Gr, N, D, depth]`, `b [G, N, D]`, `wx [tokens, Gx, N, D]`
    /// and the h before every step, `[tokens, N, depth]`; in chunks of tokens.
    pub(crate) fn gates_again(
        &self,
        rows: &Rows,
        [r, b, wx, previous_h]: [Address; 4],
        gates: Gates,
        wide_gates: Address,
        scratch: &GatesAgainScratch,
    ) -> Result<()> {
        let shapes = &self.shapes;
        let (tokens, batch) = (shapes.tokens(), shapes.recurrent * shapes.heads);
        if tokens == 0 {
            return Ok(());
        }
        let row = batch * self.depth;
        let chunk = self.gates_again_chunk();
        let (heads, depth) = (shapes.heads, self.depth);
        let matrix = shapes.head_dim * depth;
        let operands = [
            Operand::new(r, [0, heads * matrix, matrix], self.bytes),
            Operand::new(previous_h, [chunk * heads * depth, 0, depth], self.bytes),
            Operand::new(scratch.products, [0, heads * depth, depth], size_of::<f32>()),
        ];
        let counts = [tokens.div_ceil(chunk), shapes.recurrent, heads];
        let addresses = self.addresses(scratch.addresses, operands, counts)?;
        let stream = self.device.stream.cu_stream();
        for (part, first) in (0..tokens).step_by(chunk).enumerate() {
            let count = chunk.min(tokens - first);
            let [r, h, products_at] = addresses.of_part(part);
            // Columns are tokens: products[g][n] (D x count) = R[g][n] (D x D, stored transposed)
            // h[n] (D x count).
            let product = Product {
                a: Matrix { pointers: r, ld: depth, transposed: true },
                b: Matrix { pointers: h, ld: heads * depth, transposed: false },
                c: Matrix { pointers: products_at, ld: row, transposed: false },
                m: shapes.head_dim,
                n: count,
                k: shapes.head_dim,
                batch,
                input: self.element,
                output: Dtype::F32,
                tf32: self.problem.options.tf32,
            };
            // SAFETY: `addresses` wrote the addresses; all of them lie in live buffers, as the
            // scratch memory does.
            unsafe { self.device.shared.blas()?.batched(stream, &product, scratch.blas)? };
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
            // SAFETY: the kernel takes (Sizes, Offset, Offset, const float*, const T*, const
            // float*, Gates<T>, float*).
            unsafe {
                self.over(stream, &self.gates_again, count * shapes.units(), &mut arguments)?
            };
        }
        Ok(())
    }
}
