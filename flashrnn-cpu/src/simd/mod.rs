//! Vectors of numbers: what a cell computes with on the CPU.
//!
//! A [`Simd`] type is a newtype over one vector register. The kernels are generic over it and are
//! compiled once for each instruction set; [`Level`] picks one at run time. Everything between
//! [`Simd::vectorize`] and an intrinsic is `#[inline(always)]`, so that the intrinsics meet the
//! caller's target features and become single instructions.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod math;
mod pair;
mod portable;

use flashrnn_core::{Element, Real};

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::{F32x8, F64x4};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{F32x16, F64x8};

pub(crate) use pair::Pair;

/// An instruction set of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// One number at a time, on any machine.
    Portable,
    /// 256-bit vectors: AVX2, FMA and F16C.
    Avx2,
    /// 512-bit vectors: AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    /// The instruction sets of this machine, the best last.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            levels.push(Self::Avx2);
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                levels.push(Self::Avx512);
            }
        }
        levels
    }

    /// The name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
        }
    }
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Asks for the [`LINE`] bytes at `p`, which need not be valid, to be brought to the second-level
/// cache.
#[inline(always)]
pub(crate) fn prefetch<P>(p: *const P) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every such machine has the instruction, which no address makes fail.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
        _mm_prefetch::<_MM_HINT_T1>(p.cast::<i8>().wrapping_add(LINE - 1));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Work to be compiled for an instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Op {
    type Output;
    /// # Safety
    /// The caller states what must hold of the memory that the work touches.
    unsafe fn run(self) -> Self::Output;
}

/// A vector of `LANES` numbers of type `Scalar`.
pub(crate) trait Simd: Real + 'static {
    type Scalar: Element<Wide = Self::Scalar>;
    const LANES: usize;
    /// How many vectors wide the panels of a product are; with [`Simd::ROWS`] rows they fill the
    /// registers.
    const PANEL: usize;
    /// How many rows of a product share one pass over a panel.
    const ROWS: usize;
    /// Whether there are registers enough for a cell to compute two vectors at once.
    const PAIRS: bool;

    /// Runs `op` compiled for this instruction set.
    ///
    /// # Safety
    /// The machine has the instruction set, and what `op` demands holds.
    unsafe fn vectorize<O: Op>(op: O) -> O::Output;

    fn splat(v: Self::Scalar) -> Self;
    /// `self * b + c`, with one rounding where the machine has such an instruction.
    fn mul_add(self, b: Self, c: Self) -> Self;
}

/// Work that is to be compiled for the vector `V`.
pub(crate) struct For<V, W> {
    pub work: W,
    vector: std::marker::PhantomData<V>,
}

impl<V: Simd, W> For<V, W>
where
    Self: Op<Output = ()>,
{
    /// Runs `work`, compiled for `V`'s instruction set.
    ///
    /// # Safety
    /// The machine has it, and what the work demands holds.
    #[inline(always)]
    pub unsafe fn run_vectorized(work: W) {
        // SAFETY: as promised by the caller.
        unsafe { V::vectorize(Self { work, vector: std::marker::PhantomData }) }
    }
}

/// A vector whose lanes are stored as `T`, and whose numbers can be read and written as they are.
pub(crate) trait Vector<T: Element>:
    Simd<Scalar = T::Wide> + Storage<T> + Storage<T::Wide>
{
}

impl<T: Element, V: Simd<Scalar = T::Wide> + Storage<T> + Storage<T::Wide>> Vector<T> for V {}

/// A vector whose lanes are stored as `T`.
pub(crate) trait Storage<T: Element>: Simd {
    /// # Safety
    /// `p` is valid for reading `LANES` elements.
    unsafe fn load(p: *const T) -> Self;

    /// # Safety
    /// `p` is valid for writing `LANES` elements.
    unsafe fn store(self, p: *mut T);

    /// Loads the first `n` lanes; the others are 0.
    ///
    /// # Safety
    /// `p` is valid for reading `n <= LANES` elements.
    #[inline(always)]
    unsafe fn load_n(p: *const T, n: usize) -> Self {
        if n == Self::LANES {
            // SAFETY: as promised by the caller.
            return unsafe { Self::load(p) };
        }
        let mut lanes = [T::default(); 16];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: i < n.
            *lane = unsafe { *p.add(i) };
        }
        // SAFETY: no vector has more than 16 lanes.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// Stores the first `n` lanes.
    ///
    /// # Safety
    /// `p` is valid for writing `n <= LANES` elements.
    #[inline(always)]
    unsafe fn store_n(self, p: *mut T, n: usize) {
        if n == Self::LANES {
            // SAFETY: as promised by the caller.
            return unsafe { self.store(p) };
        }
        let mut lanes = [T::default(); 16];
        // SAFETY: no vector has more than 16 lanes.
        unsafe { self.store(lanes.as_mut_ptr()) };
        for (i, &lane) in lanes.iter().enumerate().take(n) {
            // SAFETY: i < n.
            unsafe { *p.add(i) = lane };
        }
    }

    /// Clamps to the numbers that a 16-bit `T` has, as [`Element::saturating_from_wide`] does; NaN
    /// stays.
    #[inline(always)]
    fn saturated(self) -> Self {
        if size_of::<T>() == size_of::<T::Wide>() {
            return self;
        }
        self.clamp_min(Self::lit(-T::MAX)).clamp_max(Self::lit(T::MAX))
    }

    /// Stores the first `n` lanes of a state or of gates: [`saturated`](Storage::saturated).
    ///
    /// # Safety
    /// As for [`store_n`](Storage::store_n).
    #[inline(always)]
    unsafe fn store_state_n(self, p: *mut T, n: usize) {
        // SAFETY: as promised by the caller.
        unsafe { Storage::<T>::store_n(Storage::<T>::saturated(self), p, n) }
    }

    /// The value that storing a state as `T` and loading it again gives.
    #[inline(always)]
    fn rounded(self) -> Self {
        let mut lanes = [T::default(); 16];
        // SAFETY: no vector has more than 16 lanes.
        unsafe {
            Storage::<T>::saturated(self).store(lanes.as_mut_ptr());
            Self::load(lanes.as_ptr())
        }
    }
}

#[cfg(test)]
mod tests;
