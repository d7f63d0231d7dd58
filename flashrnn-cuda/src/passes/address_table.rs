//! Tables of matrix addresses for batched products, written by a kernel.

use flashrnn_core::Result;

use crate::call::Address;
use crate::kernels::launch::{Kernel, Launch, argument, grid};
use crate::passes::Common;

/// The matrices of one operand. kernels/weight_grad.cu defines the same struct `Operand`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    first: Address,
    strides: [i64; 3],
}

impl Operand {
    /// Describes matrices that start at address `first`. `strides` are the distances between parts,
    /// gates and heads, in elements of `bytes` bytes.
    pub(crate) fn new(first: Address, strides: [usize; 3], bytes: usize) -> Self {
        Self { first, strides: strides.map(|elements| (elements * bytes) as i64) }
    }
}

/// The addresses of the matrices of a batched product, in device memory:
/// `[3, parts, gates, heads]`.
pub(crate) struct AddressTable {
    table: Address,
    /// Matrices per operand.
    per_operand: usize,
    /// Matrices per operand and part.
    per_part: usize,
}

impl AddressTable {
    /// Enqueues `kernel`, which writes the addresses of `operands` to `table`. `counts` holds the
    /// numbers of parts, gates and heads.
    pub(crate) fn write(
        common: &Common,
        kernel: &Kernel,
        table: Address,
        operands: [Operand; 3],
        counts: [usize; 3],
    ) -> Result<Self> {
        let [parts, gates, heads] = counts;
        let per_operand = parts * gates * heads;
        let ([mut a, mut b, mut c], mut out) = (operands, table);
        let [mut parts, mut gates_on, mut heads_on] = counts.map(|count| count as i32);
        let mut arguments = [
            argument(&mut a),
            argument(&mut b),
            argument(&mut c),
            argument(&mut parts),
            argument(&mut gates_on),
            argument(&mut heads_on),
            argument(&mut out),
        ];
        let launch = Launch::new(grid(per_operand.div_ceil(256))?, 256);
        // SAFETY: the kernel takes (Operand, Operand, Operand, int, int, int, char**).
        unsafe { kernel.launch(common.stream(), &launch, &mut arguments)? };
        Ok(Self { table, per_operand, per_part: gates * heads })
    }

    /// Returns the address of each operand's first entry for part `part`.
    pub(crate) fn part(&self, part: usize) -> [Address; 3] {
        let at = |matrix: usize| self.table + (matrix * size_of::<u64>()) as Address;
        [0, 1, 2].map(|operand| at(operand * self.per_operand + part * self.per_part))
    }
}
