//! R and b in the order of the kernels, and their gradients: one large product over all tokens in a few parts, and column
//! sums in parts, each added up in a fixed order.

use flashrnn_core::{Dtype, Element, Result};

use crate::blas::{Matrix, Product};
use crate::call::{Address, Gates};
use crate::launch::Launch;
use crate::memory::Buffer;
use crate::plan::{CudaWeights, Engine};
use crate::select;
use crate::time_loop::{argument, grid};

/// Some gates of all tokens: `[tokens, gates, N, unit_stride / D …]`, as the batched product reads them.
struct GateRows {
    address: Address,
    /// The first of the recurrent gates here, and how many.
    first: usize,
    count: usize,
    /// Elements from a head to the next, and from a token to the next.
    head: usize,
    token: usize,
}

impl Engine {
    /// R `[Gr, N, D, D]` and b `[G, N, D]` in the order of the kernels.
    pub(crate) fn pack<T: Element>(&self, r: Address, b: Address) -> Result<CudaWeights<T>> {
        let shapes = &self.shapes;
        let matrices = shapes.recurrent * shapes.heads;
        let len = matrices * shapes.head_dim * self.depth;
        let packed = CudaWeights::<T> {
            forward: self.device.alloc(len)?,
            backward: self.device.alloc(len)?,
            b: self.device.alloc(shapes.b().iter().product())?,
        };
        let (mut r, mut b, mut bias) = (r, b, packed.b.ptr());
        let (mut forward, mut backward) = (packed.forward.ptr(), packed.backward.ptr());
        let sizes = self.sizes;
        let (mut recurrent, mut heads) = (shapes.recurrent as i32, sizes.heads);
        let (mut head_dim, mut depth, mut bias_len) = (sizes.head_dim, sizes.depth, packed.b.len() as i64);
        let mut arguments = [
            argument(&mut r),
            argument(&mut b),
            argument(&mut forward),
            argument(&mut backward),
            argument(&mut bias),
            argument(&mut recurrent),
            argument(&mut heads),
            argument(&mut head_dim),
            argument(&mut depth),
            argument(&mut bias_len),
        ];
        let tiles = self.depth.div_ceil(32);
        let blocks = (matrices * tiles * tiles).min(self.device.multiprocessors * 16);
        let launch = Launch::new(grid(blocks)?, 256);
        // SAFETY: the kernel takes (const W*, const W*, T*, T*, float*, int, int, int, int, Offset).
        unsafe { self.pack.launch(self.device.stream.cu_stream(), &launch, &mut arguments)? };
        Ok(packed)
    }

    /// `d_r [Gr, N, D_out, D_in]` from dg and `previous_h [tokens, N, depth]`.
    pub(crate) fn weight_gradient<T: Element>(
        &self,
        d_gates: Gates,
        previous_h: Address,
        d_r: Address,
        accumulate: bool,
    ) -> Result<()> {
        let shapes = &self.shapes;
        let (heads, head_dim, recurrent) = (shapes.heads, shapes.head_dim, shapes.recurrent);
        let tiles = head_dim.div_ceil(128);
        let multiprocessors = self.device.multiprocessors;
        let (parts, length) =
            select::parts(shapes.tokens(), recurrent * heads * tiles * tiles, multiprocessors);
        let rest = shapes.tokens() - parts * length;
        let total = parts + usize::from(rest > 0);
        // [total, Gr, N, D, depth]
        let matrix = head_dim * self.depth;
        let partial: Buffer<f32> = self.device.alloc(total * recurrent * heads * matrix)?;
        let mut padded = Vec::new();
        for gates in self.recurrent_gates(d_gates) {
            let gates = self.aligned::<T>(gates, &mut padded)?;
            for (first, parts, length) in [(0, parts, length), (parts, 1, rest)] {
                if length == 0 {
                    continue;
                }
                let first_token = if first == 0 { 0 } else { shapes.tokens() - rest };
                let batch = gates.count * heads * parts;
                let addresses: Buffer<u64> = self.device.alloc(3 * batch)?;
                let table = |k: usize| addresses.ptr() + (k * batch * size_of::<u64>()) as Address;
                let at =
                    |address: Address, elements: usize, bytes: usize| address + (elements * bytes) as Address;
                let h = at(previous_h, first_token * heads * self.depth, self.bytes);
                let dg = at(gates.address, first_token * gates.token, self.bytes);
                let out =
                    at(partial.ptr(), (first * recurrent + gates.first) * heads * matrix, size_of::<f32>());
                let bytes = self.bytes;
                let strides = [0, self.depth * bytes, length * heads * self.depth * bytes];
                self.addresses_of(h, strides, [gates.count, heads, parts], table(0))?;
                let strides = [heads * gates.head * bytes, gates.head * bytes, length * gates.token * bytes];
                self.addresses_of(dg, strides, [gates.count, heads, parts], table(1))?;
                let float = size_of::<f32>();
                let strides = [heads * matrix * float, matrix * float, recurrent * heads * matrix * float];
                self.addresses_of(out, strides, [gates.count, heads, parts], table(2))?;
                // Column-major: partial (D_in x D_out) = h (D_in x tokens) dg (tokens x D_out).
                let product = Product {
                    a: Matrix { pointers: table(0), ld: heads * self.depth, transposed: false },
                    b: Matrix { pointers: table(1), ld: gates.token, transposed: true },
                    c: Matrix { pointers: table(2), ld: self.depth, transposed: false },
                    m: head_dim,
                    n: head_dim,
                    k: length,
                    batch,
                    input: self.element,
                    output: Dtype::F32,
                    tf32: self.problem.tf32,
                };
                // SAFETY: `addresses_of` wrote the addresses; all of them lie in live buffers.
                unsafe { self.device.blas()?.batched(self.device.stream.cu_stream(), &product)? };
            }
        }
        let total = if shapes.tokens() == 0 { 0 } else { total };
        self.reduce(
            partial.ptr(),
            total,
            [recurrent * heads * head_dim, head_dim, self.depth],
            d_r,
            accumulate,
        )
    }

    /// `d_b [G, N, D]` from dg.
    pub(crate) fn bias_gradient(&self, d_gates: Gates, d_b: Address, accumulate: bool) -> Result<()> {
        let shapes = &self.shapes;
        let units = shapes.units();
        let columns = shapes.gates * units;
        let blocks = columns.div_ceil(256);
        let (parts, length) = select::parts(shapes.tokens(), blocks, self.device.multiprocessors * 4);
        let total = if shapes.tokens() == 0 { 0 } else { shapes.tokens().div_ceil(length) };
        // [total, G, N, D]: the gates of `inner` first
        let partial: Buffer<f32> = self.device.alloc(total.max(parts) * columns)?;
        let inner = (d_gates.inner, shapes.inner() * units, 0);
        let external = (d_gates.external, shapes.external * units, shapes.inner() * units);
        for (rows, columns_here, first) in [inner, external] {
            if columns_here == 0 || total == 0 {
                continue;
            }
            let (mut rows, mut count, mut columns_here) = (rows, shapes.tokens() as i64, columns_here as i64);
            let (mut length, mut stride) = (length as i64, columns as i64);
            let mut out = partial.ptr() + (first * size_of::<f32>()) as Address;
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
            unsafe { self.column_sums.launch(self.device.stream.cu_stream(), &launch, &mut arguments)? };
        }
        self.reduce(partial.ptr(), total, [1, columns, columns], d_b, accumulate)
    }

    /// dg of the recurrent gates: those in the tensor without external input, then those in `d_wx`.
    fn recurrent_gates(&self, d_gates: Gates) -> Vec<GateRows> {
        let shapes = &self.shapes;
        let (inner, head) = (shapes.inner(), shapes.head_dim);
        let part = |address, first: usize, end: usize, gates: usize| GateRows {
            address,
            first,
            count: end.saturating_sub(first),
            head,
            token: gates * shapes.units(),
        };
        let parts = [
            part(d_gates.inner, 0, inner.min(shapes.recurrent), inner),
            part(d_gates.external, inner, shapes.recurrent, shapes.external),
        ];
        parts.into_iter().filter(|part| part.count > 0).collect()
    }

    /// The same gates where every matrix begins at a multiple of 16 bytes, which the products need: copied to a buffer, kept in
    /// `padded`, unless they lie so.
    fn aligned<T: Element>(&self, gates: GateRows, padded: &mut Vec<Buffer<T>>) -> Result<GateRows> {
        if (gates.head * self.bytes).is_multiple_of(16) && gates.address.is_multiple_of(16) {
            return Ok(gates);
        }
        let rows = self.shapes.tokens() * gates.token / gates.head;
        let buffer: Buffer<T> = self.device.alloc(rows * self.depth)?;
        let (mut from, mut count, mut out) = (gates.address, rows as i64, buffer.ptr());
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
        unsafe { self.over(&self.pad, rows * self.depth, &mut arguments)? };
        padded.push(buffer);
        let token = gates.token / gates.head * self.depth;
        Ok(GateRows { address: out, head: self.depth, token, ..gates })
    }

    /// Writes the addresses of the matrices of a batched product: of `parts` parts of each head of each recurrent gate,
    /// `strides` bytes apart.
    pub(crate) fn addresses_of(
        &self,
        base: Address,
        strides: [usize; 3],
        counts: [usize; 3],
        out: Address,
    ) -> Result<()> {
        let (mut base, mut out) = (base, out);
        let [mut gate, mut head, mut part] = strides.map(|stride| stride as i64);
        let [mut gates, mut heads, mut parts] = counts.map(|count| count as i32);
        let mut arguments = [
            argument(&mut base),
            argument(&mut gate),
            argument(&mut head),
            argument(&mut part),
            argument(&mut gates),
            argument(&mut heads),
            argument(&mut parts),
            argument(&mut out),
        ];
        let threads = counts.iter().product::<usize>();
        let launch = Launch::new(grid(threads.div_ceil(256))?, 256);
        // SAFETY: the kernel takes (char*, Offset, Offset, Offset, int, int, int, char**).
        unsafe { self.addresses.launch(self.device.stream.cu_stream(), &launch, &mut arguments) }
    }

    /// `out [rows, length]`, the sum of `partial [parts, rows, stride]`.
    fn reduce(
        &self,
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
        unsafe { self.over(&self.reduce, len, &mut arguments) }
    }
}
