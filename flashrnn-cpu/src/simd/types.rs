//! The vectors of each element type and instruction set.

use flashrnn_core::{Element, bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::avx2::{F32x8, F64x4};
#[cfg(target_arch = "x86_64")]
use super::avx512::{F32x16, F64x8};
use super::vector::Vector;

/// An element type with its vectors on each [`Level`].
pub(crate) trait VectorTypes: Element {
    type Portable: Vector<Self> + Send + Sync;
    type Avx2: Vector<Self> + Send + Sync;
    type Avx512: Vector<Self> + Send + Sync;
}

macro_rules! vector_types {
    ($t:ty, $portable:ty, $avx2:ty, $avx512:ty) => {
        impl VectorTypes for $t {
            type Portable = $portable;
            #[cfg(target_arch = "x86_64")]
            type Avx2 = $avx2;
            #[cfg(target_arch = "x86_64")]
            type Avx512 = $avx512;
            // `Level::available` excludes these.
            #[cfg(not(target_arch = "x86_64"))]
            type Avx2 = $portable;
            #[cfg(not(target_arch = "x86_64"))]
            type Avx512 = $portable;
        }
    };
}

vector_types!(f16, f32, F32x8, F32x16);
vector_types!(bf16, f32, F32x8, F32x16);
vector_types!(f32, f32, F32x8, F32x16);
vector_types!(f64, f64, F64x4, F64x8);
