//! Tests `Real` for f32 and f64, and `Dual`.

use flashrnn_core::{Dual, Real};

type Function<R> = (&'static str, fn(R) -> R, [f64; 2]);

/// Returns the functions of one number that a cell can use, each with a range where its slope is
/// finite.
fn functions<R: Real>() -> Vec<Function<R>> {
    vec![
        ("exp", R::exp, [-5.0, 5.0]),
        ("ln", R::ln, [0.1, 10.0]),
        ("sqrt", R::sqrt, [0.1, 10.0]),
        ("abs", R::abs, [0.1, 5.0]),
        ("abs of negatives", R::abs, [-5.0, -0.1]),
        ("tanh", R::tanh, [-4.0, 4.0]),
        ("softplus_neg_abs", R::softplus_neg_abs, [0.1, 5.0]),
        ("softplus_neg_abs of negatives", R::softplus_neg_abs, [-5.0, -0.1]),
        ("sigmoid", R::sigmoid, [-6.0, 6.0]),
        ("log_sigmoid", R::log_sigmoid, [-6.0, 6.0]),
        ("neg", |x| -x, [-5.0, 5.0]),
        ("sum and difference", |x| (x + R::lit(2.0)) - (R::lit(3.0) - x), [-5.0, 5.0]),
        ("product and quotient", |x| x * x / (x * x + R::lit(1.0)), [-5.0, 5.0]),
        ("quotient by it", |x| R::lit(2.0) / x, [0.2, 5.0]),
        ("max", |x| (x * x).clamp_min(R::lit(-1.0)), [-5.0, 5.0]),
        ("max, bound", |x| R::lit(-9.0).clamp_min(x), [-5.0, 5.0]),
        ("min", |x| (x * x).clamp_max(R::lit(30.0)), [-5.0, 5.0]),
        ("select", |x| R::select(x.gt(R::lit(0.0)), x * x, -x), [0.1, 5.0]),
    ]
}

fn points([low, high]: [f64; 2]) -> impl Iterator<Item = f64> {
    (0..=200).map(move |i| low + (high - low) * i as f64 / 200.0)
}

#[test]
fn f32_agrees_with_f64() {
    for ((name, narrow, range), (_, wide, _)) in
        functions::<f32>().into_iter().zip(functions::<f64>())
    {
        for x in points(range) {
            let (got, want) = (narrow(x as f32) as f64, wide(x as f32 as f64));
            // Allows a few roundings of 6e-8 each, relative to numbers of up to 30.
            assert!(
                (got - want).abs() <= 4e-7 * (1.0 + want.abs()),
                "{name}({x}): {got}, wanted {want}"
            );
        }
    }
}

#[test]
fn dual_agrees_with_finite_differences() {
    for ((name, dual, range), (_, plain, _)) in
        functions::<Dual<f64>>().into_iter().zip(functions::<f64>())
    {
        for x in points(range) {
            let got = dual(Dual::variable(x));
            // `Dual` computes sigmoid from exp(-|x|), together with its slope, and f64 from
            // exp(-x), so they round differently.
            let value = plain(x);
            let off = (got.value - value).abs();
            assert!(
                off <= 2.0 * f64::EPSILON * value.abs(),
                "the value of {name}({x}) differs by {off}"
            );
            // The error of the central difference is h² f'''/6 + 1e-16/h, about 1e-9 relative to
            // the largest slopes.
            let h = 1e-5;
            let want = (plain(x + h) - plain(x - h)) / (2.0 * h);
            let error = (got.tangent - want).abs();
            assert!(
                error < 1e-7 * (1.0 + want.abs()),
                "the slope of {name}({x}): {}, wanted {want}",
                got.tangent
            );
        }
    }
}

#[test]
fn dual_of_dual_gives_the_second_derivative() {
    for x in points([-3.0, 3.0]) {
        let twice = Dual::variable(Dual::variable(x)).tanh().tangent.tangent;
        let t = x.tanh();
        let want = -2.0 * t * (1.0 - t * t);
        assert!((twice - want).abs() < 1e-14, "tanh''({x}): {twice}, wanted {want}");
    }
}

#[test]
fn slopes_at_the_kinks() {
    let at_zero = |f: fn(Dual<f64>) -> Dual<f64>| f(Dual::variable(0.0)).tangent;
    assert_eq!(at_zero(Real::abs), 0.0);
    // Both terms of log-sigmoid have a kink at 0, but their sum is smooth.
    assert_eq!(at_zero(Real::log_sigmoid), 0.5);
    // On a tie, clamps return the number, not the bound.
    assert_eq!(at_zero(|x| x.clamp_min(Dual::constant(0.0))), 1.0);
    assert_eq!(at_zero(|x| x.clamp_max(Dual::constant(0.0))), 1.0);
    // The slope of abs at -0 is 0 as well.
    assert_eq!(Dual::variable(-0.0).abs().tangent, 0.0);
}

#[test]
fn gradients_can_be_stopped_and_replaced() {
    let x = Dual::variable(3.0);
    let stopped = (x * x).stop_gradient();
    assert_eq!((stopped.value, stopped.tangent), (9.0, 0.0));
    let replaced = (x * x).with_gradient_of(x * Dual::constant(5.0));
    assert_eq!((replaced.value, replaced.tangent), (9.0, 5.0));
    assert_eq!(3.0f64.stop_gradient(), 3.0);
    // Later operations differentiate through the replaced tangent.
    let square = replaced * replaced;
    assert_eq!((square.value, square.tangent), (81.0, 90.0));
}

macro_rules! special_values {
    ($name:ident, $t:ty) => {
        /// Checks NaN, infinities and zeros of both signs.
        #[test]
        fn $name() {
            let (inf, nan) = (<$t>::INFINITY, <$t>::NAN);
            // Floats have inherent `max` and `min` that treat NaN differently.
            let max = |a: $t, b: $t| Real::clamp_min(a, b);
            let min = |a: $t, b: $t| Real::clamp_max(a, b);
            assert!(max(nan, 1.0).is_nan() && min(nan, 1.0).is_nan());
            assert_eq!((max(1.0, nan), min(1.0, nan)), (1.0, 1.0));
            assert_eq!((max(-inf, 1.0), min(inf, 1.0)), (1.0, 1.0));
            assert_eq!((max(1.0, 1.0), min(2.0, 1.0)), (1.0, 1.0));
            assert!(!nan.gt(1.0) && !Real::gt(1.0, nan) && !Real::gt(0.0 as $t, -0.0));
            for f in [Real::exp, Real::ln, Real::sqrt, Real::abs, Real::tanh] as [fn($t) -> $t; 5] {
                assert!(f(nan).is_nan());
            }
            for f in [Real::softplus_neg_abs, Real::sigmoid, Real::log_sigmoid] as [fn($t) -> $t; 3]
            {
                assert!(f(nan).is_nan());
            }
            assert_eq!((Real::sigmoid(inf), Real::sigmoid(-inf)), (1.0, 0.0));
            assert_eq!((Real::log_sigmoid(inf), Real::log_sigmoid(-inf)), (0.0, -inf));
            assert_eq!((Real::softplus_neg_abs(inf), Real::softplus_neg_abs(-inf)), (0.0, 0.0));
            // The logarithm of σ stays exact where σ itself underflows.
            assert_eq!(Real::log_sigmoid(-1e6 as $t), -1e6);
            assert_eq!((Real::exp(-inf), Real::exp(inf)), (0.0, inf));
            assert!(Real::ln(-1.0 as $t).is_nan() && Real::sqrt(-1.0 as $t).is_nan());
            assert_eq!(Real::ln(0.0 as $t), -inf);
            assert!(
                Real::tanh(-0.0 as $t).is_sign_negative()
                    && Real::abs(-0.0 as $t).is_sign_positive()
            );
            assert_eq!((Real::tanh(inf), Real::tanh(-inf)), (1.0, -1.0));
        }
    };
}

special_values!(special_values_f32, f32);
special_values!(special_values_f64, f64);
