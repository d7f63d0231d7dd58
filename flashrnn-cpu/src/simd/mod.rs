//! SIMD vectors, the numbers that a cell computes with on the CPU.
//!
//! A [`Simd`] type is a newtype over one vector register. The kernels are generic over it and
//! compiled once per instruction set; [`Level`] selects one at run time. Everything between
//! [`Simd::vectorize`] and an intrinsic is `#[inline(always)]`: only in a function with the target
//! features does an intrinsic become a single instruction.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod level;
mod math;
mod pair;
mod portable;
mod prefetch;
#[cfg(target_arch = "x86_64")]
mod registers;
#[cfg(test)]
mod tests;
mod types;
mod vector;

pub use level::Level;
pub(crate) use pair::Pair;
pub(crate) use prefetch::prefetch;
pub(crate) use types::VectorTypes;
pub(crate) use vector::{Simd, SimdTask, Storage, Vector};
