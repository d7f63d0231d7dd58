//! Packed weights.

use std::sync::{Mutex, OnceLock};

use flashrnn_core::Result;

use crate::memory::{Aligned, Reserved, lock};

/// R in packed order and b, both in the arithmetic's element type `S`. The first backward pass adds
/// R in transposed order.
pub struct Packed<S> {
    forward: Aligned<S>,
    transposed: OnceLock<Aligned<S>>,
    /// The memory of `transposed` until it is filled, so that backward passes do not allocate.
    reserved: Mutex<Option<Reserved<S>>>,
    transposed_len: usize,
    /// `[G, N, D]`
    b: Aligned<S>,
}

impl<S: bytemuck::Pod> Packed<S> {
    /// Allocates R, transposed R and b with the element counts `lens`. `pack` fills R and b.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](flashrnn_core::Error::OutOfMemory) if an allocation fails.
    pub(crate) fn new(lens: [usize; 3], pack: impl FnOnce(&mut [S], &mut [S])) -> Result<Self> {
        let [len, transposed_len, b_len] = lens;
        let (mut forward, mut b) = (Aligned::new(len)?, Aligned::new(b_len)?);
        let reserved = Mutex::new(Some(Aligned::reserve(transposed_len)?));
        pack(forward.as_mut_slice(), b.as_mut_slice());
        Ok(Self { forward, transposed: OnceLock::new(), reserved, transposed_len, b })
    }

    /// Returns R in the order of the forward pass, `[N, Panels::len]`.
    pub(crate) fn forward(&self) -> &[S] {
        self.forward.as_slice()
    }

    /// Returns `b [G, N, D]`.
    pub(crate) fn b(&self) -> &[S] {
        self.b.as_slice()
    }

    /// Returns R in the order of the backward pass, which `pack` fills on the first use.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](flashrnn_core::Error::OutOfMemory) if an earlier `pack` panicked and
    /// the memory that it lost cannot be allocated again.
    pub(crate) fn transposed(&self, pack: impl FnOnce(&mut [S])) -> Result<&[S]> {
        if let Some(packed) = self.transposed.get() {
            return Ok(packed.as_slice());
        }
        // One call packs; others wait here.
        let mut reserved = lock(&self.reserved);
        if let Some(packed) = self.transposed.get() {
            return Ok(packed.as_slice());
        }
        let memory = reserved.take().map_or_else(|| Aligned::reserve(self.transposed_len), Ok)?;
        let mut packed = memory.zeroed();
        pack(packed.as_mut_slice());
        Ok(self.transposed.get_or_init(|| packed).as_slice())
    }
}

impl<S> std::fmt::Debug for Packed<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed").finish_non_exhaustive()
    }
}
