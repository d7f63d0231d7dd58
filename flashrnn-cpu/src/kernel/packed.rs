//! Packed weights.

use std::sync::{Mutex, OnceLock};

use flashrnn_core::Result;

use crate::memory::{Aligned, Reserved, lock};

/// R and b, widened to `S` and packed; R once more in transposed order from the first backward pass
/// on.
pub struct Packed<S> {
    forward: Aligned<S>,
    backward: OnceLock<Aligned<S>>,
    /// Memory for `backward` until it is filled, so that a backward pass need not allocate any.
    reserved: Mutex<Option<Reserved<S>>>,
    transposed_len: usize,
    /// `[G, N, D]`
    b: Aligned<S>,
}

impl<S: bytemuck::Pod> Packed<S> {
    /// Allocates memory of `lens` elements for R, R transposed and b, and lets `pack` fill R and b.
    pub(crate) fn new(lens: [usize; 3], pack: impl FnOnce(&mut [S], &mut [S])) -> Result<Self> {
        let [len, transposed_len, b_len] = lens;
        let (mut forward, mut b) = (Aligned::new(len)?, Aligned::new(b_len)?);
        let reserved = Mutex::new(Some(Aligned::reserve(transposed_len)?));
        pack(forward.as_mut_slice(), b.as_mut_slice());
        Ok(Self { forward, backward: OnceLock::new(), reserved, transposed_len, b })
    }

    /// R in the order of the forward pass.
    pub(crate) fn forward(&self) -> &[S] {
        self.forward.as_slice()
    }

    /// `b [G, N, D]`
    pub(crate) fn b(&self) -> &[S] {
        self.b.as_slice()
    }

    /// R in the order of the backward pass, which `pack` writes the first time.
    pub(crate) fn transposed(&self, pack: impl FnOnce(&mut [S])) -> Result<&[S]> {
        if let Some(packed) = self.backward.get() {
            return Ok(packed.as_slice());
        }
        // One call packs, others wait.
        let mut reserved = lock(&self.reserved);
        if let Some(packed) = self.backward.get() {
            return Ok(packed.as_slice());
        }
        // None only after a panic.
        let memory = reserved.take().map_or_else(|| Aligned::reserve(self.transposed_len), Ok)?;
        let mut packed = memory.zeroed();
        pack(packed.as_mut_slice());
        Ok(self.backward.get_or_init(|| packed).as_slice())
    }
}

impl<S> std::fmt::Debug for Packed<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed").finish_non_exhaustive()
    }
}
