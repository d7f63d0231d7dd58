//! Prefetching.

use crate::memory::CACHE_LINE;

/// Prefetches the cache lines that hold the [`CACHE_LINE`] bytes at `p` into the L2 cache. `p` need
/// not be valid.
#[inline(always)]
pub(crate) fn prefetch<P>(p: *const P) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every such machine has the instruction; it does not fault, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
        _mm_prefetch::<_MM_HINT_T1>(p.cast::<i8>().wrapping_add(CACHE_LINE - 1));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}
