//! Selects the engine for a cell, an element type and an instruction set.
//!
//! The engines and the kernels of the built-in cells are instantiated here, in non-generic
//! functions, so crates that make plans only link them. The kernel of a user's cell is instantiated
//! in the user's crate, for the element types that it uses.

use std::any::Any;

use flashrnn_core::{
    Cell, Element, Elman, Error, Gru, Lstm, Problem, Result, Shapes, Slstm, bf16, f16,
};

use crate::cell_kernel::{CellKernel, cell_kernel};
use crate::engine::{Engine, VectorEngine};
use crate::simd::{Level, VectorTypes};
use crate::threads::Workers;

/// An element type with the code that this crate instantiates for it.
trait Instantiated: VectorTypes {
    /// Returns the kernel of a built-in cell, or `None` for other cells.
    fn built_in(cell: &dyn Any, level: Level) -> Option<Box<dyn CellKernel<Self>>>;

    /// Returns the engine for `level`. The machine must support it, and `cell` must be compiled for
    /// it.
    fn engine(
        cell: Box<dyn CellKernel<Self>>,
        problem: &Problem,
        shapes: &Shapes,
        level: Level,
        workers: Workers,
    ) -> Box<dyn Engine<Self>>;
}

macro_rules! instantiate {
    ($t:ty) => {
        impl Instantiated for $t {
            fn built_in(cell: &dyn Any, level: Level) -> Option<Box<dyn CellKernel<Self>>> {
                fn of<C: Cell>(cell: &dyn Any, level: Level) -> Option<Box<dyn CellKernel<$t>>> {
                    cell.downcast_ref().map(|cell: &C| cell_kernel(cell, level))
                }
                of::<Elman>(cell, level)
                    .or_else(|| of::<Gru>(cell, level))
                    .or_else(|| of::<Lstm>(cell, level))
                    .or_else(|| of::<Slstm>(cell, level))
            }

            fn engine(
                cell: Box<dyn CellKernel<Self>>,
                problem: &Problem,
                shapes: &Shapes,
                level: Level,
                workers: Workers,
            ) -> Box<dyn Engine<Self>> {
                type At<V> = VectorEngine<$t, V>;
                match level {
                    Level::Portable => {
                        At::<<$t as VectorTypes>::Portable>::build(cell, problem, shapes, workers)
                    }
                    Level::Avx2 => {
                        At::<<$t as VectorTypes>::Avx2>::build(cell, problem, shapes, workers)
                    }
                    Level::Avx512 => {
                        At::<<$t as VectorTypes>::Avx512>::build(cell, problem, shapes, workers)
                    }
                }
            }
        }
    };
}

instantiate!(f16);
instantiate!(bf16);
instantiate!(f32);
instantiate!(f64);

/// Returns the engine of a problem for `level`, which the machine must support.
///
/// # Errors
/// [`Error::Unsupported`] if a cell claims to be built in but is not.
pub(crate) fn engine<T: Element, C: Cell>(
    cell: &C,
    problem: &Problem,
    shapes: &Shapes,
    level: Level,
    workers: Workers,
) -> Result<Box<dyn Engine<T>>> {
    macro_rules! if_type {
        ($t:ty) => {
            // The conditions are constants, so the other branches are not compiled.
            if const { T::DTYPE as u8 == <$t>::DTYPE as u8 } {
                let kernel = if C::BUILT_IN {
                    <$t>::built_in(cell, level)
                } else {
                    Some(cell_kernel(cell, level))
                };
                let kernel = kernel.ok_or_else(|| not_built_in(C::NAME))?;
                return Ok(same_type(<$t>::engine(kernel, problem, shapes, level, workers)));
            }
        };
    }
    if_type!(f16);
    if_type!(bf16);
    if_type!(f32);
    if_type!(f64);
    unreachable!("there are no other element types")
}

fn not_built_in(cell: &str) -> Error {
    Error::Unsupported {
        backend: "cpu",
        what: format!("the cell {cell}"),
        why: "it claims to be built in (`Cell::BUILT_IN`), but is not".into(),
    }
}

/// Converts a value between two names of the same type.
fn same_type<A: 'static, B: 'static>(a: A) -> B {
    let mut a = Some(a);
    let any: &mut dyn Any = &mut a;
    match any.downcast_mut::<Option<B>>().and_then(Option::take) {
        Some(b) => b,
        None => unreachable!("each element type has a DTYPE of its own"),
    }
}
