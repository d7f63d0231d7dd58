//! The element types of tensors.

use std::fmt;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::Real;

/// Identifies an [`Element`] type at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE half precision, 16 bits.
    F16,
    /// The upper half of an f32, 16 bits.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// An element of a tensor: f16, bf16, f32 or f64.
///
/// Only storage is ever 16 bits: values are computed, carried and summed in [`Element::Wide`].
pub trait Element: Pod + Default + PartialEq + fmt::Debug + Send + Sync + sealed::Sealed {
    /// The type used in arithmetic: f64 for f64, else f32.
    type Wide: Element<Wide = Self::Wide> + Real<Mask = bool> + PartialOrd;

    /// Identifies this type.
    const DTYPE: Dtype;

    /// The unit roundoff: half the distance from 1 to the next larger number.
    const ROUNDOFF: f64;

    /// The largest finite number.
    const MAX: f64;

    /// Widens without rounding.
    fn to_wide(self) -> Self::Wide;

    /// Rounds to nearest, ties to even. Values out of range become infinite.
    fn from_wide(wide: Self::Wide) -> Self;

    /// Rounds like [`from_wide`](Element::from_wide), but 16-bit types saturate: values out of
    /// range, including infinities, become ±[`MAX`](Element::MAX). NaN stays NaN. Every backend
    /// rounds states and saved gates this way, and `h` before it is multiplied by `R`.
    #[inline(always)]
    fn saturating_from_wide(wide: Self::Wide) -> Self {
        let bound = Self::Wide::lit(Self::MAX);
        if size_of::<Self>() < size_of::<Self::Wide>() {
            Self::from_wide(wide.clamp_min(-bound).clamp_max(bound))
        } else {
            Self::from_wide(wide)
        }
    }

    /// Converts to f64, exactly.
    fn to_f64(self) -> f64;

    /// Converts from f64, rounding to nearest (16-bit types round twice, through f32).
    fn from_f64(v: f64) -> Self;
}

macro_rules! element {
    (
        $t:ty, $wide:ty, $dtype:ident, $roundoff:expr, $max:expr,
        $to_wide:expr, $from_wide:expr, $to_f64:expr, $from_f64:expr
    ) => {
        impl sealed::Sealed for $t {}
        impl Element for $t {
            type Wide = $wide;
            const DTYPE: Dtype = Dtype::$dtype;
            const ROUNDOFF: f64 = $roundoff;
            const MAX: f64 = $max;
            #[inline(always)]
            fn to_wide(self) -> $wide {
                $to_wide(self)
            }
            #[inline(always)]
            fn from_wide(wide: $wide) -> Self {
                $from_wide(wide)
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to_f64(self)
            }
            #[inline(always)]
            fn from_f64(v: f64) -> Self {
                $from_f64(v)
            }
        }
    };
}

element!(f16, f32, F16, 0.5 / 1024.0, 65504.0, f16::to_f32, f16::from_f32, f16::to_f64, |v| {
    f16::from_f32(v as f32)
});
element!(
    bf16,
    f32,
    Bf16,
    0.5 / 128.0,
    3.389_531_389_251_535_5e38,
    bf16::to_f32,
    bf16::from_f32,
    bf16::to_f64,
    |v| bf16::from_f32(v as f32)
);
element!(
    f32,
    f32,
    F32,
    0.5 * f32::EPSILON as f64,
    f32::MAX as f64,
    |v| v,
    |v| v,
    |v| v as f64,
    |v| v as f32
);
element!(f64, f64, F64, 0.5 * f64::EPSILON, f64::MAX, |v| v, |v| v, |v| v, |v| v);
