//! Compares every vector function with the standard library's in f64, over the whole range.

use flashrnn_core::{Element, bf16, f16};

use super::{Level, Simd, SimdTask, Storage};

/// Applies a function of vectors to a slice whose length is a multiple of the lanes.
struct Map<'a, V: Simd, F> {
    f: F,
    x: &'a [V::Scalar],
    y: &'a mut [V::Scalar],
}

impl<V: Storage<<V as Simd>::Scalar>, F: Fn(V) -> V> SimdTask<V> for Map<'_, V, F> {
    #[inline(always)]
    unsafe fn run(self) {
        for (x, y) in self.x.chunks_exact(V::LANES).zip(self.y.chunks_exact_mut(V::LANES)) {
            // SAFETY: each chunk holds LANES elements.
            unsafe { (self.f)(V::load(x.as_ptr())).store(y.as_mut_ptr()) };
        }
    }
}

/// Returns numbers of every magnitude and sign, dense around 0 and 1, and special values. Their
/// count is a multiple of 16.
fn numbers<S: Element>() -> Vec<S> {
    let mut x = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        88.7,
        -103.9,
        709.7,
        -745.1,
    ];
    // The NaN of all one bits, which integer arithmetic would overflow.
    x.push(f64::from_bits(u64::MAX));
    for i in 0..20_000 {
        let i = f64::from(i);
        x.extend([i / 1000.0 - 10.0, i / 20.0 - 500.0, (i / 20_000.0 - 0.5) / 4.0]);
        let magnitude = (i / 20_000.0 * 1400.0 - 700.0).exp();
        x.extend([magnitude, -magnitude, (-magnitude.ln().abs() / 20.0).exp()]);
    }
    while x.len() % 16 != 0 {
        x.push(0.5);
    }
    x.into_iter().map(S::from_f64).collect()
}

/// Returns the largest error in units of the last place of the exact result, or of `tiny` where the
/// result is smaller.
fn max_error<V: Storage<<V as Simd>::Scalar>>(
    f: impl Fn(V) -> V,
    exact: impl Fn(f64) -> f64,
    tiny: f64,
) -> f64 {
    let x = numbers::<V::Scalar>();
    let mut y = vec![V::Scalar::from_f64(f64::NAN); x.len()];
    // SAFETY: the callers test levels that the machine supports.
    unsafe { V::vectorize(Map { f, x: &x, y: &mut y }) };
    let error = |(x, y): (&V::Scalar, &V::Scalar)| {
        let want = exact(x.to_f64());
        let rounded = V::Scalar::from_f64(want).to_f64();
        let got = y.to_f64();
        if rounded.is_nan() || got.is_nan() {
            return if rounded.is_nan() == got.is_nan() { 0.0 } else { f64::INFINITY };
        }
        if rounded == got {
            return if rounded == 0.0 && rounded.is_sign_negative() != got.is_sign_negative() {
                1e9
            } else {
                0.0
            };
        }
        (got - want).abs() / (want.abs().max(tiny) * 2.0 * V::Scalar::ROUNDOFF)
    };
    x.iter().zip(&y).map(error).fold(0.0, f64::max)
}

fn check_functions<V: Storage<<V as Simd>::Scalar>>(level: Level, tiny: f64) {
    let slope = |x: f64| (-x.abs()).exp() / (1.0 + (-x.abs()).exp()).powi(2);
    let softplus = |x: f64| (-x.abs()).exp().ln_1p();
    let rows = [
        ("exp", max_error::<V>(|x| x.exp(), f64::exp, tiny), 2.0),
        ("tanh", max_error::<V>(|x| x.tanh(), f64::tanh, tiny), 4.0),
        ("softplus_neg_abs", max_error::<V>(|x| x.softplus_neg_abs(), softplus, tiny), 4.0),
        // 1 / (1 + exp(-x)) is 0 where exp(-x) is infinite, so results below the smallest normal
        // number may be lost.
        (
            "sigmoid",
            max_error::<V>(
                |x| x.sigmoid(),
                |x| 1.0 / (1.0 + (-x).exp()),
                tiny / V::Scalar::ROUNDOFF,
            ),
            4.0,
        ),
        (
            "sigmoid's slope",
            max_error::<V>(|x| x.sigmoid_and_slope().1, slope, tiny / V::Scalar::ROUNDOFF),
            8.0,
        ),
        // 4 exp(-2|x|) is 0 where exp(-2|x|) is below the smallest normal number, so results below
        // 4 times that may be lost.
        (
            "tanh's slope",
            max_error::<V>(
                |x| x.tanh_and_slope().1,
                |x| 4.0 * slope(2.0 * x),
                tiny / 4.0 / V::Scalar::ROUNDOFF,
            ),
            8.0,
        ),
        ("tanh beside its slope", max_error::<V>(|x| x.tanh_and_slope().0, f64::tanh, tiny), 4.0),
        ("ln", max_error::<V>(|x| x.ln(), f64::ln, tiny), 1.0),
        ("sqrt", max_error::<V>(|x| x.sqrt(), f64::sqrt, tiny), 1.0),
        ("abs", max_error::<V>(|x| x.abs(), f64::abs, tiny), 0.0),
        ("neg", max_error::<V>(|x| -x, |x| -x, tiny), 0.0),
        (
            "max",
            max_error::<V>(|x| x.clamp_min(V::lit(0.5)), |x| if 0.5 > x { 0.5 } else { x }, tiny),
            0.0,
        ),
        (
            "min",
            max_error::<V>(|x| x.clamp_max(V::lit(0.5)), |x| if x > 0.5 { 0.5 } else { x }, tiny),
            0.0,
        ),
        (
            "select",
            max_error::<V>(
                |x| V::select(x.gt(V::lit(1.0)), V::lit(2.0), x),
                |x| if x > 1.0 { 2.0 } else { x },
                tiny,
            ),
            0.0,
        ),
    ];
    let failures: Vec<_> = rows.iter().filter(|(_, error, allowed)| error > allowed).collect();
    assert!(
        failures.is_empty(),
        "{level:?} (function, error, allowed, in units of the last place): {failures:?}"
    );
}

#[test]
fn functions_are_accurate_over_the_whole_range() {
    for level in Level::available() {
        // Results below the smallest normal number are held to the spacing of that number.
        let (tiny32, tiny64) = (f64::from(f32::MIN_POSITIVE), f64::MIN_POSITIVE);
        match level {
            Level::Portable => {
                check_functions::<f32>(level, tiny32);
                check_functions::<f64>(level, tiny64);
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                check_functions::<super::avx2::F32x8>(level, tiny32);
                check_functions::<super::avx2::F64x4>(level, tiny64);
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                check_functions::<super::avx512::F32x16>(level, tiny32);
                check_functions::<super::avx512::F64x8>(level, tiny64);
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("no other level is available"),
        }
    }
}

/// Rounds a slice to `T`, as states or as gradients.
struct Round<'a, T> {
    x: &'a [f32],
    y: &'a mut [T],
    saturate: bool,
}

impl<T: Element, V: Storage<T> + Storage<f32>> SimdTask<V> for Round<'_, T> {
    #[inline(always)]
    unsafe fn run(self) {
        for (x, y) in self.x.chunks_exact(V::LANES).zip(self.y.chunks_exact_mut(V::LANES)) {
            // SAFETY: each chunk holds LANES elements.
            unsafe {
                let x = <V as Storage<f32>>::load(x.as_ptr());
                if self.saturate {
                    Storage::<T>::store_state_n(x, y.as_mut_ptr(), V::LANES);
                } else {
                    Storage::<T>::store(x, y.as_mut_ptr());
                }
            };
        }
    }
}

fn check_rounding<T: Element<Wide = f32>, V: Storage<T> + Storage<f32>>() {
    let mut x = numbers::<f32>();
    // Ties with even and odd neighbours in both 16-bit types, and numbers around the largest of
    // each.
    x.extend((0..16_u32).map(|i| f32::from_bits(0x3f80_0000 + i * 0x0800)));
    x.extend((0..16_u32).map(|i| f32::from_bits(0x3f80_0000 + i * 0x8000)));
    x.extend((0..16_u32).map(|i| f32::from_bits(0x477f_e000 + i * 0x0200)));
    x.extend((0..16_u32).map(|i| -f32::from_bits(0x7f7f_0000 + i * 0x1000)));
    for saturate in [false, true] {
        let mut y = vec![T::default(); x.len()];
        let round = Round { x: &x, y: &mut y, saturate };
        // SAFETY: the callers test levels that the machine supports.
        unsafe { V::vectorize(round) };
        for (&x, &y) in x.iter().zip(&y) {
            let want = if saturate { T::saturating_from_wide(x) } else { T::from_wide(x) }.to_f64();
            let got = y.to_f64();
            assert!(
                want == got || want.is_nan() && got.is_nan(),
                "{x} became {got}, wanted {want}"
            );
        }
    }
}

#[test]
fn sixteen_bit_storage_rounds_to_nearest_even() {
    check_rounding::<f16, f32>();
    check_rounding::<bf16, f32>();
    #[cfg(target_arch = "x86_64")]
    for level in Level::available() {
        if level == Level::Avx2 {
            check_rounding::<f16, super::avx2::F32x8>();
            check_rounding::<bf16, super::avx2::F32x8>();
        }
        if level == Level::Avx512 {
            check_rounding::<f16, super::avx512::F32x16>();
            check_rounding::<bf16, super::avx512::F32x16>();
        }
    }
}
