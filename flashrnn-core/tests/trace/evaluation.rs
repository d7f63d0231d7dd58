//! Compares interpreted traces with the cells they were traced from.

use flashrnn_core::cell::Array;
use flashrnn_core::trace::{Expr, Function, Graph, Op, Unary, backward, forward};
use flashrnn_core::{Cell, CellSizes, Dual, Elman, Gru, Lstm, Real, Slstm, derived_backward};

use crate::cells::{Derived, Everything, Leaky, MinimalGated};

/// Calls `$check` on every cell.
macro_rules! every_cell {
    ($check:ident) => {
        $check(&Elman);
        $check(&Gru);
        $check(&Lstm);
        $check(&Slstm);
        $check(&MinimalGated);
        $check(&Leaky { a: 0.3 });
        $check(&Everything);
    };
}

/// A linear congruential generator of numbers in [-1, 1).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    }

    /// Returns a number in ±4, or a special value at which functions bend, overflow, underflow or
    /// fail.
    fn any(&mut self) -> f64 {
        const SPECIAL: [f64; 16] = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            30.0,
            -30.0,
            200.0,
            -200.0,
            1e-30,
            -1e-42,
            1e300,
            -3e38,
            1e-310,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ];
        if self.next() < 0.4 {
            4.0 * self.next()
        } else {
            SPECIAL[(8.0 * (self.next() + 1.0)) as usize]
        }
    }
}

fn sizes<C: Cell>() -> (usize, usize) {
    (C::S, C::G)
}

fn array<R: Copy, A: Array<R>>(numbers: &[R]) -> A {
    let mut array = A::splat(numbers[0]);
    array.as_mut().copy_from_slice(numbers);
    array
}

/// Calls [`Cell::forward`] with the states and gates concatenated in `x`.
fn run_forward<C: Cell, R: Real>(cell: &C, x: &[R]) -> Vec<R> {
    let (s, _) = sizes::<C>();
    cell.forward::<R>(array(&x[..s]), array(&x[s..])).as_ref().to_vec()
}

type Backward<C, R> = fn(
    &C,
    <C as Cell>::State<R>,
    <C as Cell>::Gates<R>,
    <C as Cell>::State<R>,
) -> (<C as Cell>::State<R>, <C as Cell>::Gates<R>);

/// Calls `backward` with the states, gates and gradients concatenated in `x`.
fn run_backward<C: Cell, R: Real>(backward: Backward<C, R>, cell: &C, x: &[R]) -> Vec<R> {
    let (s, g) = sizes::<C>();
    let (d_state, d_gates) =
        backward(cell, array(&x[..s]), array(&x[s..s + g]), array(&x[s + g..]));
    [d_state.as_ref(), d_gates.as_ref()].concat()
}

/// Traces [`derived_backward`], with the inputs and outputs of [`backward`].
fn traced_derived<C: Cell>(cell: &C) -> Function {
    let graph = Graph::new();
    let x: Vec<Expr> = backward(cell).inputs().iter().map(|name| graph.input(name)).collect();
    let outputs = run_backward(derived_backward::<C, Expr>, cell, &x);
    Function::new(&graph, outputs.into_iter().map(|x| (String::new(), x)))
}

fn assert_same_bits(name: &str, x: &[f64], got: &[f64], want: &[f64]) {
    let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    assert!(
        got.len() == want.len() && got.iter().zip(want).all(same),
        "{name} at {x:?}: {got:?}, wanted {want:?}"
    );
}

/// Asserts that a trace equals the function it was traced from, bit for bit, at random and special
/// inputs rounded to `R`.
fn assert_traces<R: Real + Into<f64>>(name: &str, trace: &Function, run: impl Fn(&[R]) -> Vec<R>) {
    let mut random = Random(7);
    let widen = |numbers: Vec<R>| -> Vec<f64> { numbers.into_iter().map(R::into).collect() };
    for _ in 0..3000 {
        let x: Vec<R> = trace.inputs().iter().map(|_| R::lit(random.any())).collect();
        assert_same_bits(name, &widen(x.clone()), &widen(trace.eval(&x)), &widen(run(&x)));
    }
}

/// Does what [`assert_traces`] does, for traces that contain both a sigmoid and its slope. A trace
/// has one operation for the sigmoid, but f32 and f64 round [`Real::sigmoid`] and the value
/// returned by [`Real::sigmoid_and_slope`] differently. `Dual` uses the latter for both.
fn assert_traces_with_slopes<R: Real + Into<f64>>(
    name: &str,
    trace: &Function,
    run: impl Fn(&[Dual<R>]) -> Vec<Dual<R>>,
) {
    let mut random = Random(8);
    let values = |numbers: Vec<Dual<R>>| -> Vec<f64> {
        numbers.into_iter().map(|x| x.value.into()).collect()
    };
    for _ in 0..3000 {
        let x: Vec<Dual<R>> = trace.inputs().iter().map(|_| Dual::lit(random.any())).collect();
        assert_same_bits(name, &values(x.clone()), &values(trace.eval(&x)), &values(run(&x)));
    }
}

#[test]
fn forward_is_the_cell_bit_for_bit() {
    fn plain<C: Cell>(cell: &C) {
        assert_traces::<f64>(C::NAME, &forward(cell), |x| run_forward(cell, x));
        assert_traces::<f32>(C::NAME, &forward(cell), |x| run_forward(cell, x));
    }
    plain(&Elman);
    plain(&Gru);
    plain(&Lstm);
    plain(&Slstm);
    plain(&MinimalGated);
    plain(&Leaky { a: 0.3 });
    assert_traces_with_slopes::<f64>("everything", &forward(&Everything), |x| {
        run_forward(&Everything, x)
    });
    assert_traces_with_slopes::<f32>("everything", &forward(&Everything), |x| {
        run_forward(&Everything, x)
    });
}

#[test]
fn written_backward_is_the_cell_bit_for_bit() {
    fn check<C: Cell>(cell: &C) {
        let run = |x: &[_]| run_backward(C::backward::<Dual<f64>>, cell, x);
        assert_traces_with_slopes::<f64>(C::NAME, &backward(cell), run);
        let run = |x: &[_]| run_backward(C::backward::<Dual<f32>>, cell, x);
        assert_traces_with_slopes::<f32>(C::NAME, &backward(cell), run);
    }
    check(&Elman);
    check(&Gru);
    check(&Lstm);
    check(&Slstm);
}

#[test]
fn derived_backward_is_traced_bit_for_bit() {
    fn check<C: Cell>(cell: &C) {
        let trace = traced_derived(cell);
        let run = |x: &[_]| run_backward(derived_backward::<C, Dual<f64>>, cell, x);
        assert_traces_with_slopes::<f64>(C::NAME, &trace, run);
        let run = |x: &[_]| run_backward(derived_backward::<C, Dual<f32>>, cell, x);
        assert_traces_with_slopes::<f32>(C::NAME, &trace, run);
    }
    every_cell!(check);
}

/// Reverse mode computes the same gradients as forward mode.
#[test]
fn reverse_is_derived_backward() {
    fn check<C: Cell>(cell: &C) {
        let cell = &Derived(cell.clone());
        let (reverse, (s, g)) = (backward(cell), sizes::<C>());
        let mut random = Random(9);
        for _ in 0..3000 {
            let x: Vec<f64> = (0..s + g + s).map(|_| 3.0 * random.next()).collect();
            let mut held = x.clone();
            for &k in C::CONSTANT {
                held[s + g + k] = 0.0;
            }
            let got = reverse.eval(&x);
            let mut want = run_backward(derived_backward::<_, f64>, cell, &held);
            for &k in C::CONSTANT {
                want[k] = 0.0;
            }
            for (k, (&got, &want)) in got.iter().zip(&want).enumerate() {
                // Allows about twenty roundings of 1e-16 each, of terms up to 1e3 times their sum.
                assert!(
                    (got - want).abs() <= 1e-12 * (1.0 + want.abs()),
                    "{}, output {k} at {x:?}: {got}, wanted {want}",
                    C::NAME
                );
            }
        }
    }
    every_cell!(check);
}

/// Reverse mode computes the true slopes of a step. sLSTM is left out: it treats m' as a constant,
/// so its gradients are not those of a single step.
#[test]
fn reverse_agrees_with_finite_differences() {
    fn check<C: Cell>(cell: &C) {
        let cell = &Derived(cell.clone());
        let (reverse, (s, g)) = (backward(cell), sizes::<C>());
        let mut random = Random(10);
        for _ in 0..300 {
            let x: Vec<f64> = (0..s + g + s).map(|_| 2.0 * random.next()).collect();
            let loss = |k: usize, shift: f64| {
                let mut moved = x[..s + g].to_vec();
                moved[k] += shift;
                let after = run_forward(cell, &moved).into_iter().enumerate();
                after
                    .filter(|(k, _)| !C::CONSTANT.contains(k))
                    .map(|(k, y)| y * x[s + g + k])
                    .sum::<f64>()
            };
            for (k, got) in reverse.eval(&x).into_iter().enumerate() {
                if C::CONSTANT.contains(&k) {
                    assert_eq!(got, 0.0, "{}", C::NAME);
                    continue;
                }
                // The error of the central difference is h² f'''/6 + 1e-16/h, where f''' reaches
                // 100 next to the kinks.
                let h = 1e-5;
                let want = (loss(k, h) - loss(k, -h)) / (2.0 * h);
                assert!(
                    (got - want).abs() <= 1e-8 * (1.0 + want.abs()),
                    "{}, output {k} at {x:?}: {got}, wanted {want}",
                    C::NAME
                );
            }
        }
    }
    check(&Elman);
    check(&Gru);
    check(&Lstm);
    check(&MinimalGated);
    check(&Leaky { a: 0.3 });
    check(&Everything);
}

/// Pins the number of operations of the forward function, of the backward function as overridden
/// (or else in reverse mode), in reverse mode, and in forward mode.
#[test]
fn operation_counts() {
    fn check<C: Cell>(cell: &C, want: [usize; 4]) {
        let functions =
            [forward(cell), backward(cell), backward(&Derived(cell.clone())), traced_derived(cell)];
        let got = functions.map(|function| function.operations());
        assert_eq!(got, want, "{}", C::NAME);
    }
    check(&Elman, [1, 2, 2, 4]);
    check(&Gru, [11, 20, 21, 58]);
    check(&Lstm, [9, 25, 25, 70]);
    check(&Slstm, [24, 46, 46, 135]);
    check(&MinimalGated, [8, 17, 17, 48]);
    check(&Leaky { a: 0.3 }, [4, 4, 4, 14]);
    check(&Everything, [39, 98, 98, 305]);
}

#[test]
fn split_functions_are_the_whole_bit_for_bit() {
    fn check<C: Cell>(cell: &C) {
        let (states, gates) = sizes::<C>();
        let whole = backward(cell);
        for early in [0, states, states + gates, whole.inputs().len()] {
            let (first, second) = whole.split(early);
            assert_eq!(first.inputs(), &whole.inputs()[..early]);
            assert_eq!(second.inputs().len(), first.outputs().len() + whole.inputs().len() - early);
            let mut random = Random(9);
            for _ in 0..1000 {
                let x: Vec<f64> = whole.inputs().iter().map(|_| random.any()).collect();
                let handed_over = first.eval(&x[..early]);
                let got = second.eval(&[&handed_over, &x[early..]].concat());
                assert_same_bits(C::NAME, &x, &got, &whole.eval(&x));
            }
        }
        // The second part of a backward function is linear in the incoming gradients, hence cheap.
        let (first, second) = whole.split(states + gates);
        let transcendental =
            |op: &Op| matches!(op, Op::Unary(Unary::Tanh | Unary::Sigmoid | Unary::Exp, _));
        assert!(!second.nodes().iter().any(transcendental), "{}", C::NAME);
        assert!(first.operations() > 0 || whole.operations() == second.operations());
    }
    every_cell!(check);
}
