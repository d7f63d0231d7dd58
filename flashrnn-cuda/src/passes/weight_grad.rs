//! The gradients of R and b: one large product over all tokens in a few parts, and column sums in
//! parts, each added up in a fixed order.

use cudarc::driver::sys::CUstream;
use flashrnn_core::{Dtype, Result};

use crate::call::{Address, Gates};
use crate::device::blas::{Matrix, Product};
use crate::engine::Engine;
use crate::kernels::launch::Launch;
use crate::memory::scratch::WeightScratch;
use crate::passes::time_loop::{argument, grid};
use crate::select::step as select;

/// Some gates of all tokens: `[tokens, gates, N, unit_stride / D …]`, as the batched product reads
/// them.
struct GateRows {
    address: Address,
    /// Room for a copy with aligned rows.
    padded: Address,
    /// The first of the recurrent gates here, and how many.
    first: usize,
    count: usize,
    /// Elements from a head to the next, and from a token to the next.
    head: usize,
    token: usize,
}

/// `Operand` of kernels/weight_grad.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    first: Address,
    strides: [i64; 3],
}

impl Operand {
    /// Matrices from `first` on, whose elements of `bytes` are so many from a part, gate and head
    /// to the next.
    pub(crate) fn new(first: Address, strides: [usize; 3], bytes: usize) -> Self {
        Self { first, strides: strides.map(|elements| (elements * bytes) as i64) }
    }
}

/// The addresses of the matrices of a batched product on the device, `[3, parts, gates, heads]`.
pub(crate) struct Addresses {
    table: Address,
    /// The matrices of an operand, and those of one of its parts.
    operand: usize,
    part: usize,
}

impl Addresses {
    /// Where the addresses of each operand's matrices begin, from a part on.
    pub(crate) fn of_part(&self, part: usize) -> [Address; 3] {
        let at = |matrix: usize| self.table + (matrix * size_of::<u64>()) as Address;
        [0, 1, 2].map(|operand| at(operand * self.operand + part * self.part))
    }
}

/// How the tokens are divided for a sum over all of them.
pub(crate) struct Parts {
    /// Parts of `length` tokens.
    whole: usize,
    length: usize,
    /// The tokens of one more part, 0 where there is none.
    rest: usize,
    /// All parts.
    pub total: usize,
}

impl Engine {
    /// How `d_r` is summed.
    pub(crate) fn row_parts(&self) -> Parts {
        let shapes = &self.shapes;
        let tiles = shapes.head_dim.div_ceil(128);
        let blocks = shapes.recurrent * shapes.heads * tiles * tiles;
        let (whole, length) =
            select::parts(shapes.tokens(), blocks, self.device.shared.multiprocessors);
        let rest = shapes.tokens() - whole * length;
        let total = if shapes.tokens() == 0 { 0 } else { whole + usize::from(rest > 0) };
        Parts { whole, length, rest, total }
    }

    /// `d_r [Gr, N, D_out, D_in]` from dg and `previous_h [tokens, N, depth]`.
    pub(crate) fn weight_gradient(
        &self,
        d_gates: Gates,
        previous_h: Address,
        d_r: Address,
        accumulate: bool,
        scratch: &WeightScratch,
    ) -> Result<()> {
        let shapes = &self.shapes;
        let (heads, head_dim, recurrent) = (shapes.heads, shapes.head_dim, shapes.recurrent);
        let Parts { whole, length, rest, total } = self.row_parts();
        let stream = self.device.stream.cu_stream();
        // [total, Gr, N, D, depth]
        let matrix = head_dim * self.depth;
        let mut table = scratch.addresses;
        for gates in self.recurrent_gates(d_gates, scratch.padded) {
            let gates = self.aligned(gates)?;
            let out =
                scratch.partial + (gates.first * heads * matrix * size_of::<f32>()) as Address;
            let operands = [
                Operand::new(previous_h, [length * heads * self.depth, 0, self.depth], self.bytes),
                Operand::new(
                    gates.address,
                    [length * gates.token, heads * gates.head, gates.head],
                    self.bytes,
                ),
                Operand::new(
                    out,
                    [recurrent * heads * matrix, heads * matrix, matrix],
                    size_of::<f32>(),
                ),
            ];
            let addresses = self.addresses(table, operands, [total, gates.count, heads])?;
            table += (3 * total * gates.count * heads * size_of::<u64>()) as Address;
            for (first, parts, length) in [(0, whole, length), (whole, 1, rest)] {
                if length == 0 {
                    continue;
                }
                let [h, dg, out] = addresses.of_part(first);
                // Column-major: partial (D_in x D_out) = h (D_in x tokens) dg (tokens x D_out).
                let product = Product {
                    a: Matrix { pointers: h, ld: heads * self.depth, transposed: false },
                    b: Matrix { pointers: dg, ld: gates.token, transposed: true },
                    c: Matrix { pointers: out, ld: self.depth, transposed: false },
                    m: head_dim,
                    n: head_dim,
                    k: length,
                    batch: parts * gates.count * heads,
                    input: self.element,
                    output: Dtype::F32,
                    tf32: self.problem.options.tf32,
                };
                // SAFETY: `addresses` wrote the addresses; all of them lie in live buffers, as the
                // scratch memory does.
                unsafe { self.device.shared.blas()?.batched(stream, &product, scratch.blas)? };
            }
        }
        self.reduce(
            stream,
            scratch.partial,
            total,
            [recurrent * heads * head_dim, head_dim, self.depth],
            d_r,
            accumulate,
        )
    }

    /// In how many parts columns are summed, and the tokens of each but the last, which may have
    /// fewer.
    pub(crate) fn column_parts(&self) -> (usize, usize) {
        let (tokens, columns) = (self.shapes.tokens(), self.shapes.gates * self.shapes.units());
        let (_, length) =
            select::parts(tokens, columns.div_ceil(256), self.device.shared.multiprocessors * 4);
        (tokens.div_ceil(length.max(1)), length)
    }

    /// `d_b [G, N, D]` from dg, by way of `partial [parts, G, N, D]`, the gates of `inner` first.
    pub(crate) fn bias_gradient(
        &self,
        stream: CUstream,
        d_gates: Gates,
        partial: Address,
        d_b: Address,
        accumulate: bool,
    ) -> Result<()> {
        let shapes = &self.shapes;
        let units = shapes.units();
        let columns = shapes.gates * units;
        let (total, length) = self.column_parts();
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
        self.reduce(stream, partial, total, [1, columns, columns], d_b, accumulate)
    }

    /// dg of the recurrent gates: those in the tensor without external input, then those in `d_wx`.
    fn recurrent_gates(&self, d_gates: Gates, padded: Gates) -> Vec<GateRows> {
        let shapes = &self.shapes;
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

    /// The same gates where every matrix begins at a multiple of 16 bytes, which the products need:
    /// copied unless they lie so.
    fn aligned(&self, gates: GateRows) -> Result<GateRows> {
        if (gates.head * self.bytes).is_multiple_of(16) && gates.address.is_multiple_of(16) {
            return Ok(gates);
        }
        let rows = self.shapes.tokens() * gates.token / gates.head;
        let (mut from, mut count, mut out) = (gates.address, rows as i64, gates.padded);
        let sizes = self.sizes;
        let (mut head_dim, mut depth) = (sizes.head_dim, sizes.depth);
        let mut arguments = [
            argument(&mut from),
            argument(&mut count),
            argument(&mut head_dim),
            argument(&mut depth),
            argument(&mut out),
        ];
        // SAFETY: the kernel takes (const T*, Offset, int, int, T*).
        unsafe {
            self.over(self.device.stream.cu_stream(), &self.pad, rows * self.depth, &mut arguments)?
        };
        let token = gates.token / gates.head * self.depth;
        Ok(GateRows { address: out, head: self.depth, token, ..gates })
    }

    /// Enqueues the writing of the addresses of `operands` to `table`, of so many parts, gates and
    /// heads.
    pub(crate) fn addresses(
        &self,
        table: Address,
        operands: [Operand; 3],
        counts: [usize; 3],
    ) -> Result<Addresses> {
        let [parts, gates, heads] = counts;
        let batch = parts * gates * heads;
        let addresses = Addresses { table, operand: batch, part: gates * heads };
        let ([mut a, mut b, mut c], mut out) = (operands, table);
        let [mut parts, mut gates, mut heads] = counts.map(|count| count as i32);
        let mut arguments = [
            argument(&mut a),
            argument(&mut b),
            argument(&mut c),
            argument(&mut parts),
            argument(&mut gates),
            argument(&mut heads),
            argument(&mut out),
        ];
        let launch = Launch::new(grid(batch.div_ceil(256))?, 256);
        // SAFETY: the kernel takes (Operand, Operand, Operand, int, int, int, char**).
        unsafe { self.addresses.launch(self.device.stream.cu_stream(), &launch, &mut arguments)? };
        Ok(addresses)
    }

    /// `out [rows, length]`, the sum of `partial [parts, rows, stride]`.
    fn reduce(
        &self,
        stream: CUstream,
        partial: Address,
        parts: usize,
        [rows, length, stride]: [usize; 3],
        out: Address,
        accumulate: bool,
    ) -> Result<()> {
        let (mut partial, mut out) = (partial, out);
        let (mut parts, mut accumulate) = (parts as i32, i32::from(accumulate));
        let len = rows * length;
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
        unsafe { self.over(stream, &self.reduce, len, &mut arguments) }
    }
}
