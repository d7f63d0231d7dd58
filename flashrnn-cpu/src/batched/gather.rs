//! Gathers the steps of all rows into one matrix.

use std::ops::Range;

use flashrnn_core::Element;

use crate::memory::at;
use crate::schedule::{Previous, Row, TimeAxis};
use crate::simd::{SimdTask, Storage, Vector};

/// The steps of all rows, numbered consecutively, row after row.
pub(crate) struct Steps<'a> {
    rows: &'a [Row],
    /// The index of each row's first step, followed by the total number of steps.
    starts: &'a [usize],
}

impl<'a> Steps<'a> {
    /// Numbers the steps. `starts` must be one element longer than `rows`.
    pub fn new(rows: &'a [Row], starts: &'a mut [usize]) -> Self {
        let mut sum = 0;
        for (start, length) in starts.iter_mut().zip(rows.iter().map(|row| row.length).chain([0])) {
            *start = sum;
            sum += length;
        }
        Self { rows, starts }
    }

    /// Returns the total number of steps.
    pub fn count(&self) -> usize {
        self.starts[self.rows.len()]
    }

    /// Returns, for each index in `range`, the row and the step within that row.
    pub fn range(&self, range: Range<usize>) -> impl Iterator<Item = (Row, usize)> {
        let mut row = self.starts.partition_point(|&start| start <= range.start).saturating_sub(1);
        range.map(move |i| {
            while self.starts[row + 1] <= i {
                row += 1;
            }
            (self.rows[row], i - self.starts[row])
        })
    }

    /// Divides all steps into ranges of `size` steps; the last range may be shorter.
    pub fn chunks(&self, size: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
        (0..self.count().div_ceil(size)).map(move |i| self.chunk(i, size))
    }

    /// Returns the `i`th range of [`Self::chunks`].
    pub fn chunk(&self, i: usize, size: usize) -> Range<usize> {
        i * size..((i + 1) * size).min(self.count())
    }
}

/// Gathers one head's `h_{t-1}` for some steps, rounded to `T` as the recurrent product reads it.
pub(super) struct GatherH<'a, T: Element> {
    pub time: TimeAxis<'a>,
    pub head: usize,
    /// `[S, B, T, N, D]`
    pub states: &'a [T],
    /// `[S, B, N, D]`
    pub s0: Option<&'a [T::Wide]>,
    pub steps: &'a Steps<'a>,
    pub range: Range<usize>,
    /// `[steps, stride]`; only the first D columns are written.
    pub out: &'a mut [T::Wide],
    pub stride: usize,
}

impl<T: Element, V: Vector<T>> SimdTask<V> for GatherH<'_, T> {
    #[inline(always)]
    unsafe fn run(self) {
        let GatherH { time, head, states, s0, steps, range, out, stride } = self;
        let (d, units) = (time.shapes.head_dim, time.shapes.units());
        for ((row, step), out) in steps.range(range).zip(out.chunks_exact_mut(stride)) {
            let out = &mut out[..d];
            match (time.previous(row, step), s0) {
                (Previous::Zero, _) | (Previous::Initial, None) => out.fill(T::Wide::default()),
                (Previous::Initial, Some(s0)) => {
                    let h = &s0[row.b * units + head * d..][..d];
                    for (out, &h) in out.iter_mut().zip(h) {
                        *out = T::saturating_from_wide(h).to_wide();
                    }
                }
                (Previous::Token(token), _) => {
                    let h = &states[token * units + head * d..][..d];
                    // SAFETY: guaranteed by the caller.
                    unsafe { widen::<T, V>(h, out) };
                }
            }
        }
    }
}

/// Widens `x` into `out`, which has the same length.
///
/// # Safety
/// The machine supports `V`'s instruction set.
#[inline(always)]
pub(super) unsafe fn widen<T: Element, V: Vector<T>>(x: &[T], out: &mut [T::Wide]) {
    debug_assert_eq!(x.len(), out.len());
    let mut i = 0;
    while i < x.len() {
        let n = V::LANES.min(x.len() - i);
        // SAFETY: i + n is at most the length of both slices.
        unsafe {
            let v = <V as Storage<T>>::load_n(at(x, i, n), n);
            Storage::<T::Wide>::store_n(v, out.as_mut_ptr().add(i), n);
        }
        i += n;
    }
}
