//! Tests that infinite gates yield the limits of the cells' formulas with finite gradients, and
//! that 16-bit storage saturates.

use flashrnn_core::{
    Cell, CellSizes, Element, Elman, Gru, Lstm, Slstm, bf16, cell::Array, derived_backward, f16,
};

const INF: f64 = f64::INFINITY;

fn array<A: Array<f64>>(numbers: &[f64]) -> A {
    let mut array = A::splat(0.0);
    array.as_mut().copy_from_slice(numbers);
    array
}

/// Returns the states after each of `steps` (i, f, z, o), starting from zeros.
fn slstm(steps: &[[f64; 4]]) -> Vec<[f64; 4]> {
    let step = |state: &mut [f64; 4], gates: &[f64; 4]| {
        *state = Slstm.forward(*state, *gates);
        Some(*state)
    };
    steps.iter().scan([0.0; 4], step).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Asserts that `got` equals `want` up to rounding.
fn assert_close(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-15 * want.abs(), "{what}: {got:e}, wanted {want:e}");
}

#[test]
fn slstm_after_an_infinite_input_gate_at_the_first_step() {
    let open = [0.3, 0.9, 1.4, 0.2];
    for i in [-INF, INF] {
        // The state after the first step does not depend on i.
        let first = slstm(&[[i, 0.9, 0.4, 0.2]])[0];
        let h = sigmoid(0.2) * 0.4_f64.tanh();
        assert_close("h", first[0], h);
        assert_eq!((first[1], first[2]), (0.4_f64.tanh(), 1.0), "c and n");

        // The second step outweighs a first step with i = -inf, and is lost after one with +inf.
        let [_, second] = slstm(&[[i, 0.9, 0.4, 0.2], open])[..] else { unreachable!() };
        let z = if i < 0.0 { 1.4_f64 } else { 0.4 };
        assert_close("h after the next step", second[0], sigmoid(0.2) * z.tanh());

        // Two such steps have equal weight, as with two equal and very large finite gates.
        let [_, both] = slstm(&[[i, 0.9, 0.4, 0.2], [i, 0.9, 1.4, 0.2]])[..] else {
            unreachable!()
        };
        assert_close(
            "h after two",
            both[0],
            sigmoid(0.2) * (0.4_f64.tanh() + 1.4_f64.tanh()) / 2.0,
        );
    }
}

#[test]
fn slstm_after_an_infinite_gate_later() {
    let first = [0.3, 0.9, 0.4, 0.2];
    let after = |gates| slstm(&[first, gates])[1];
    let [one] = slstm(&[first])[..] else { unreachable!() };

    // i = -inf leaves c and n unchanged at the scale of m' = l; with f = +inf, m is unchanged too.
    let masked = after([-INF, 0.9, 1.4, 0.2]);
    assert_eq!(masked, [one[0], one[1], 1.0, one[3] + -(-0.9_f64).exp().ln_1p()]);
    assert_eq!(after([-INF, INF, 1.4, 0.2]), one);
    // i = +inf, f = -inf, and both together discard the previous state.
    let restarted = sigmoid(0.2) * 1.4_f64.tanh();
    for gates in
        [[INF, 0.9, 1.4, 0.2], [0.1, -INF, 1.4, 0.2], [-INF, -INF, 1.4, 0.2], [INF, -INF, 1.4, 0.2]]
    {
        assert_close("h", after(gates)[0], restarted);
    }
    // z and o saturate.
    assert_eq!(after([-INF, 0.9, INF, -INF])[0], 0.0);
}

#[test]
fn gru_with_an_infinite_recurrent_gate() {
    let h = |n_h, r| Gru.forward([0.5], [n_h, r, 0.0, 0.3])[0];
    assert_eq!(h(INF, -INF), h(1.0, -INF));
    assert_eq!(h(INF, 0.0), 0.5 * 0.5 + 0.5);
    assert_eq!(h(-INF, 0.0), 0.5 * 0.5 - 0.5);
}

/// Returns every assignment of `values` to `gates` gates.
fn combinations(gates: usize, values: &[f64]) -> Vec<Vec<f64>> {
    let mut all = vec![vec![]];
    for _ in 0..gates {
        all = all
            .into_iter()
            .flat_map(|gates: Vec<f64>| values.iter().map(move |&v| [&gates[..], &[v]].concat()))
            .collect();
    }
    all
}

fn check_cell<C: Cell>(cell: &C, states: &[&[f64]]) {
    for &state in states {
        for gates in combinations(C::G, &[0.7, -2.0, INF, -INF]) {
            let what = format!("{} at {state:?}, {gates:?}", C::NAME);
            let moderate = state.iter().all(|s| s.abs() < 10.0);
            let (state, g) = (array::<C::State<f64>>(state), array::<C::Gates<f64>>(&gates));
            let after = cell.forward(state, g);
            assert!(after.as_ref().iter().all(|s| s.is_finite()), "{what}: {:?}", after.as_ref());
            // One infinite gate acts like a large finite one. The effect of two depends on which of
            // the large gates is larger.
            if gates.iter().filter(|v| v.is_infinite()).count() == 1 && moderate {
                let large = |&v: &f64| if v.is_finite() { v } else { 1e38 * v.signum() };
                let near = cell.forward(state, array(&gates.iter().map(large).collect::<Vec<_>>()));
                for (k, (&got, &want)) in after.as_ref().iter().zip(near.as_ref()).enumerate() {
                    // A constant state only rescales the others, and may differ.
                    let same = got == want || C::CONSTANT.contains(&k);
                    assert!(same, "{what}: state {k} is {got}, near it {want}");
                }
            }
            let d = array(&[0.3, -0.5, 0.2, 0.0][..C::S]);
            let (d_state, d_gates) = cell.backward(state, g, d);
            let (want_state, want_gates) = derived_backward(cell, state, g, d);
            let got = [d_state.as_ref(), d_gates.as_ref()].concat();
            let want = [want_state.as_ref(), want_gates.as_ref()].concat();
            for (got, want) in got.iter().zip(&want) {
                assert!(
                    got.is_finite() && (got - want).abs() <= 1e-14,
                    "{what}: {got:?}, derived {want:?}"
                );
            }
        }
    }
}

#[test]
fn infinite_gates_yield_limits_and_finite_gradients() {
    check_cell(&Elman, &[&[0.0], &[0.4]]);
    check_cell(&Gru, &[&[0.0], &[0.4]]);
    check_cell(&Lstm, &[&[0.0, 0.0], &[0.4, -1.5]]);
    let [max, min] = [f64::from(f32::MAX), f64::from(f32::MIN)];
    check_cell(
        &Slstm,
        &[&[0.0; 4], &[0.4, 0.6, 1.3, -0.7], &[0.4, 0.6, 1.0, max], &[0.4, 0.6, 1.0, min]],
    );
}

/// Values out of range saturate in stored states, and overflow to infinity elsewhere.
#[test]
fn storage_saturates() {
    fn check<T: Element<Wide = f32>>() {
        for (v, want) in [
            (f32::INFINITY, T::MAX),
            (f32::NEG_INFINITY, -T::MAX),
            (f32::MAX, T::MAX),
            (T::MAX as f32, T::MAX),
            (1.0, 1.0),
            (-0.0, 0.0),
        ] {
            assert_eq!(T::saturating_from_wide(v).to_f64(), want, "{v} as {}", T::DTYPE);
        }
        assert!(T::saturating_from_wide(f32::NAN).to_f64().is_nan());
        assert_eq!(T::from_wide(f32::MAX).to_f64(), INF);
        assert_eq!(T::from_f64(T::MAX).to_f64(), T::MAX);
    }
    check::<f16>();
    check::<bf16>();
    assert_eq!(f32::saturating_from_wide(f32::INFINITY), f32::INFINITY);
    assert_eq!(f64::saturating_from_wide(-INF), -INF);
}
