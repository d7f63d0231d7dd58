//! Tests the validation of `Problem`, the shapes it implies, errors and element types.

use flashrnn_core::{
    Cell, Element, Elman, Error, Gru, Layout, Lstm, Options, Problem, Shapes, Slstm, bf16, f16,
};

/// Returns the option that `problem` is rejected for, if any.
fn rejected<C: Cell>(problem: &Problem) -> Option<&'static str> {
    match problem.shapes::<C>() {
        Err(Error::InvalidProblem { option, .. }) => Some(option),
        Err(other) => panic!("{problem:?}: {other}"),
        Ok(_) => None,
    }
}

#[test]
fn sizes() {
    let sizes = |b, t, n, d| rejected::<Lstm>(&Problem::new(b, t, n, d));
    assert_eq!(sizes(1, 0, 1, 1), None);
    assert_eq!(sizes(0, 1, 1, 1), None);
    assert_eq!(sizes(1, 1, 0, 1), Some("heads"));
    assert_eq!(sizes(1, 1, 1, 0), Some("head_dim"));
    assert_eq!(sizes(1, usize::MAX, 1, 1), Some("time"));
    assert_eq!(sizes(1, 1 << 31, 1, 1), Some("time"));
    assert_eq!(sizes(usize::MAX, 1, 1, 1), Some("sizes"));
    assert_eq!(sizes(1 << 31, 1 << 30, 2, 1), Some("sizes"));
    // Without tokens, states and products of the other sizes must still fit.
    assert_eq!(sizes(usize::MAX, 0, 1, 1), Some("sizes"));
    assert_eq!(sizes(0, 1, usize::MAX, 1), Some("sizes"));
    assert_eq!(sizes(0, 0, 1, usize::MAX), Some("sizes"));
    // wx fits, but r does not.
    assert_eq!(sizes(1, 0, 1, 1 << 31), Some("sizes"));
}

#[test]
fn clips() {
    for v in [0.0, -0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
        let forward =
            Problem::new(1, 1, 1, 1).with(Options { forward_clip: Some(v), ..Options::default() });
        assert_eq!(rejected::<Gru>(&forward), Some("forward_clip"), "{v}");
        let gradient = Problem::new(1, 1, 1, 1)
            .with(Options { recurrent_grad_clip: Some(v), ..Options::default() });
        assert_eq!(rejected::<Gru>(&gradient), Some("recurrent_grad_clip"), "{v}");
    }
    for v in [f64::MIN_POSITIVE, 1.0, f64::INFINITY] {
        let both = Problem::new(1, 1, 1, 1).with(Options {
            forward_clip: Some(v),
            recurrent_grad_clip: Some(v),
            ..Options::default()
        });
        assert_eq!(rejected::<Gru>(&both), None, "{v}");
    }
}

#[test]
fn cell_sizes_match_the_table() {
    let problem = Problem::new(2, 3, 5, 7);
    let table = |shapes: Shapes| [shapes.states, shapes.gates, shapes.recurrent, shapes.external];
    assert_eq!(problem.shapes::<Elman>().map(table), Ok([1, 1, 1, 1]));
    assert_eq!(problem.shapes::<Gru>().map(table), Ok([1, 4, 3, 3]));
    assert_eq!(problem.shapes::<Lstm>().map(table), Ok([2, 4, 4, 4]));
    assert_eq!(problem.shapes::<Slstm>().map(table), Ok([4, 4, 4, 4]));
}

#[test]
fn shapes_in_both_layouts() {
    let problem = Problem::new(2, 3, 5, 7);
    let s = problem.shapes::<Gru>().expect("a good problem");
    assert_eq!(s.wx(), [2, 3, 3, 5, 7]);
    assert_eq!(s.r(), [3, 5, 7, 7]);
    assert_eq!(s.b(), [4, 5, 7]);
    assert_eq!(s.state(), [1, 2, 5, 7]);
    assert_eq!(s.states(), [1, 2, 3, 5, 7]);
    assert_eq!(s.h(), [2, 3, 5, 7]);
    assert_eq!(s.resets(), [2, 3]);
    assert_eq!((s.units(), s.tokens(), s.inner(), s.token(1, 2)), (35, 6, 1, 5));

    let time_major = problem.with(Options { layout: Layout::TimeMajor, ..problem.options });
    let s = time_major.shapes::<Gru>().expect("a good problem");
    assert_eq!(s.wx(), [3, 2, 3, 5, 7]);
    assert_eq!(s.state(), [1, 2, 5, 7]);
    assert_eq!(s.states(), [1, 3, 2, 5, 7]);
    assert_eq!(s.h(), [3, 2, 5, 7]);
    assert_eq!(s.resets(), [3, 2]);
    assert_eq!(s.token(1, 2), 5);
    assert_eq!(s.token(0, 1), 2);
}

#[test]
fn errors_name_the_tensor_and_the_values_got_and_wanted() {
    let error = Shapes::check("wx", 11, &[2, 3, 2]).expect_err("a wrong size");
    assert_eq!(error.to_string(), "wx: got shape [11], wanted [2, 3, 2]");
    let error = flashrnn_core::backend::check_lengths(&[0, 3, 4], 3).expect_err("a wrong length");
    assert_eq!(error.to_string(), "lengths[2] is 4, wanted 0 to 3");
    let error = flashrnn_core::backend::check_lengths(&[-1], 3).expect_err("a negative length");
    assert_eq!(error.to_string(), "lengths[0] is -1, wanted 0 to 3");
    let error = Problem::new(1, 1, 1, 1)
        .with(Options { forward_clip: Some(f64::NAN), ..Options::default() })
        .shapes::<Lstm>();
    assert_eq!(
        error.expect_err("a wrong clip").to_string(),
        "forward_clip: got NaN, wanted a number above 0"
    );
}

/// An underlying error is the source, and does not appear in the message as well.
#[test]
fn errors_have_a_source() {
    use std::error::Error as _;
    let error = Error::device_because("opening the device", std::io::Error::other("it is gone"));
    assert_eq!(error.to_string(), "device: opening the device");
    let source = error.source().expect("the underlying error");
    assert_eq!(source.to_string(), "it is gone");
    assert_ne!(error, Error::device("opening the device"));
    assert!(Error::device("no driver").source().is_none());
}

/// Elements round to nearest, ties to even, and `ROUNDOFF` is half the distance from 1 to the next
/// larger number.
#[test]
fn elements_round() {
    fn check<T: Element>() {
        let next = 1.0 + 2.0 * T::ROUNDOFF;
        assert_eq!(T::from_f64(next).to_f64(), next);
        assert_eq!(T::from_f64(1.0 + T::ROUNDOFF).to_f64(), 1.0, "ties round to even");
        assert_eq!(T::from_f64(1.0 + 1.5 * T::ROUNDOFF).to_f64(), next);
        assert_eq!(T::from_f64(1.0 + 3.0 * T::ROUNDOFF).to_f64(), 1.0 + 4.0 * T::ROUNDOFF);
        assert!(T::from_f64(f64::NAN).to_f64().is_nan());
        assert_eq!(T::from_f64(f64::INFINITY).to_f64(), f64::INFINITY);
        assert_eq!(T::from_wide(T::from_f64(0.3).to_wide()), T::from_f64(0.3));
    }
    check::<f16>();
    check::<bf16>();
    check::<f32>();
    check::<f64>();
}
