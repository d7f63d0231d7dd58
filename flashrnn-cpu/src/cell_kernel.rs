//! A cell compiled for an element type and an instruction set: the two functions of it that a plan
//! runs.
//!
//! The built-in cells are compiled here, with all element types, in functions that are not generic:
//! a crate that makes plans links them. Of a user's cell, the user's crate compiles these two
//! functions, with the element types that it uses.

use std::any::Any;

use flashrnn_core::{
    Cell, Element, Elman, Error, Gru, Lstm, Problem, Result, Shapes, Slstm, bf16, f16,
};

use crate::engine::{Engine, Kernel};
use crate::kernel::backward::BackwardBlock;
use crate::kernel::forward::ForwardBlock;
use crate::simd::{For, Level, Vector};
use crate::threads::workers::Workers;

/// A block of one step of a cell.
pub(crate) trait Blocks<T: Element>: Send + Sync {
    /// # Safety
    /// The machine has the instruction set; the block is this thread's alone; all blocks of the
    /// step before are done.
    unsafe fn forward(&self, block: ForwardBlock<'_, T>);
    /// # Safety
    /// As for [`Blocks::forward`].
    unsafe fn backward(&self, block: BackwardBlock<'_, T>);
}

/// Work with the cell that it is for.
pub(crate) struct With<'a, C, W> {
    pub cell: &'a C,
    pub work: W,
}

/// A cell, compiled for the vector `V`.
struct Compiled<C, V> {
    cell: C,
    vector: std::marker::PhantomData<fn() -> V>,
}

impl<C: Cell, T: Element, V: Vector<T>> Blocks<T> for Compiled<C, V> {
    unsafe fn forward(&self, block: ForwardBlock<'_, T>) {
        // SAFETY: as promised by the caller.
        unsafe { For::<V, _>::run_vectorized(With { cell: &self.cell, work: block }) }
    }

    unsafe fn backward(&self, block: BackwardBlock<'_, T>) {
        // SAFETY: as promised by the caller.
        unsafe { For::<V, _>::run_vectorized(With { cell: &self.cell, work: block }) }
    }
}

/// A cell, compiled for every level, of which one is taken.
fn blocks<T: Vectors, C: Cell>(cell: &C, level: Level) -> Box<dyn Blocks<T>> {
    fn of<T: Element, C: Cell, V: Vector<T>>(cell: &C) -> Box<dyn Blocks<T>> {
        Box::new(Compiled { cell: cell.clone(), vector: std::marker::PhantomData::<fn() -> V> })
    }
    match level {
        Level::Portable => of::<T, C, T::Portable>(cell),
        Level::Avx2 => of::<T, C, T::Avx2>(cell),
        Level::Avx512 => of::<T, C, T::Avx512>(cell),
    }
}

/// An element type, with the vectors for each level and what is compiled here once.
pub(crate) trait Vectors: Element {
    type Portable: Vector<Self> + Send + Sync;
    type Avx2: Vector<Self> + Send + Sync;
    type Avx512: Vector<Self> + Send + Sync;

    /// A built-in cell; None for others.
    fn built_in(cell: &dyn Any, level: Level) -> Option<Box<dyn Blocks<Self>>>;

    /// What runs `cell`, which is compiled for `level`; the machine has it.
    fn engine(
        cell: Box<dyn Blocks<Self>>,
        problem: &Problem,
        shapes: &Shapes,
        level: Level,
        workers: Workers,
    ) -> Box<dyn Kernel<Self>>;
}

macro_rules! vectors {
    ($t:ty, $portable:ty, $avx2:ident, $avx512:ident) => {
        impl Vectors for $t {
            type Portable = $portable;
            #[cfg(target_arch = "x86_64")]
            type Avx2 = crate::simd::$avx2;
            #[cfg(target_arch = "x86_64")]
            type Avx512 = crate::simd::$avx512;
            #[cfg(not(target_arch = "x86_64"))]
            type Avx2 = $portable;
            #[cfg(not(target_arch = "x86_64"))]
            type Avx512 = $portable;

            fn built_in(cell: &dyn Any, level: Level) -> Option<Box<dyn Blocks<Self>>> {
                fn of<C: Cell>(cell: &dyn Any, level: Level) -> Option<Box<dyn Blocks<$t>>> {
                    cell.downcast_ref().map(|cell: &C| blocks(cell, level))
                }
                of::<Elman>(cell, level)
                    .or_else(|| of::<Gru>(cell, level))
                    .or_else(|| of::<Lstm>(cell, level))
                    .or_else(|| of::<Slstm>(cell, level))
            }

            fn engine(
                cell: Box<dyn Blocks<Self>>,
                problem: &Problem,
                shapes: &Shapes,
                level: Level,
                workers: Workers,
            ) -> Box<dyn Kernel<Self>> {
                match level {
                    Level::Portable => {
                        Engine::<_, Self::Portable>::build(cell, problem, shapes, workers)
                    }
                    Level::Avx2 => Engine::<_, Self::Avx2>::build(cell, problem, shapes, workers),
                    Level::Avx512 => {
                        Engine::<_, Self::Avx512>::build(cell, problem, shapes, workers)
                    }
                }
            }
        }
    };
}

vectors!(f16, f32, F32x8, F32x16);
vectors!(bf16, f32, F32x8, F32x16);
vectors!(f32, f32, F32x8, F32x16);
vectors!(f64, f64, F64x4, F64x8);

/// What runs a cell on a level that the machine has.
///
/// # Errors
/// [`Error::Unsupported`] for a cell that says it is built in, but is not.
pub(crate) fn kernel<T: Element, C: Cell>(
    cell: &C,
    problem: &Problem,
    shapes: &Shapes,
    level: Level,
    workers: Workers,
) -> Result<Box<dyn Kernel<T>>> {
    macro_rules! for_type {
        ($t:ty) => {
            // Conditions on constants alone: the other branches are not even compiled.
            if const { T::DTYPE as u8 == <$t>::DTYPE as u8 } {
                let cell = if C::BUILT_IN {
                    <$t>::built_in(cell, level)
                } else {
                    Some(blocks(cell, level))
                };
                let Some(cell) = cell else { return Err(not_built_in(C::NAME)) };
                return Ok(same_type(<$t>::engine(cell, problem, shapes, level, workers)));
            }
        };
    }
    for_type!(f16);
    for_type!(bf16);
    for_type!(f32);
    for_type!(f64);
    unreachable!("these are all the element types")
}

fn not_built_in(cell: &str) -> Error {
    Error::Unsupported {
        backend: "cpu",
        what: format!("the cell {cell}"),
        why: "it calls itself built in (`Cell::BUILT_IN`) and is not".into(),
    }
}

/// `A` and `B` are the same type, which only the caller knows.
fn same_type<A: 'static, B: 'static>(a: A) -> B {
    let mut a = Some(a);
    let any: &mut dyn Any = &mut a;
    match any.downcast_mut::<Option<B>>().and_then(Option::take) {
        Some(b) => b,
        None => unreachable!("an element type has one name"),
    }
}
