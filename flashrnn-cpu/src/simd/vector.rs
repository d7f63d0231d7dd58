//! The traits of vectors and of computations on them.

use flashrnn_core::{Element, Real};

/// A computation to be compiled for the vector `V`.
pub(crate) trait SimdTask<V> {
    /// Runs the task. Implementations must be `#[inline(always)]`, so that they are compiled with
    /// the target features of [`Simd::vectorize`].
    ///
    /// # Safety
    /// The machine supports `V`'s instruction set, and the task's own requirements hold.
    unsafe fn run(self);
}

/// A vector of `LANES` numbers of type `Scalar`.
pub(crate) trait Simd: Real + 'static {
    type Scalar: Element<Wide = Self::Scalar>;
    const LANES: usize;
    /// Vectors per panel of a packed matrix. The sums of [`Simd::ROWS`] rows and one panel fill the
    /// registers.
    const PANEL: usize;
    /// Rows of a product that share one pass over a panel.
    const ROWS: usize;
    /// Whether there are enough registers for a cell to compute two vectors at once.
    const PAIRS: bool;

    /// Runs `task` compiled for this instruction set.
    ///
    /// # Safety
    /// Same as for [`SimdTask::run`].
    unsafe fn vectorize<K: SimdTask<Self>>(task: K);

    fn splat(v: Self::Scalar) -> Self;
    /// Returns `self * b + c`, rounded once if the machine has such an instruction.
    fn mul_add(self, b: Self, c: Self) -> Self;
}

/// A vector that is loaded and stored as elements of `T` or as unrounded numbers.
pub(crate) trait Vector<T: Element>:
    Simd<Scalar = T::Wide> + Storage<T> + Storage<T::Wide>
{
}

impl<T: Element, V: Simd<Scalar = T::Wide> + Storage<T> + Storage<T::Wide>> Vector<T> for V {}

/// A vector that is loaded and stored as elements of `T`.
pub(crate) trait Storage<T: Element>: Simd {
    /// Loads all lanes.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` elements.
    unsafe fn load(p: *const T) -> Self;

    /// Stores all lanes.
    ///
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
            // SAFETY: guaranteed by the caller.
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
            // SAFETY: guaranteed by the caller.
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

    /// Clamps to the finite range of a 16-bit `T`, as [`Element::saturating_from_wide`] does. NaN
    /// is kept.
    #[inline(always)]
    fn saturated(self) -> Self {
        if size_of::<T>() == size_of::<T::Wide>() {
            return self;
        }
        self.clamp_min(Self::lit(-T::MAX)).clamp_max(Self::lit(T::MAX))
    }

    /// Stores the first `n` lanes of a state or a gate, [`saturated`](Storage::saturated).
    ///
    /// # Safety
    /// Same as for [`store_n`](Storage::store_n).
    #[inline(always)]
    unsafe fn store_state_n(self, p: *mut T, n: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe { Storage::<T>::store_n(Storage::<T>::saturated(self), p, n) }
    }

    /// Returns the state as it is after being stored as `T` and loaded again.
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
