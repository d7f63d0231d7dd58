//! Subnormal numbers of f32 and f64 are flushed to zero by default and kept on request; those of
//! f16 are always kept.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

mod common;

use flashrnn_core::{Backward, Cell, Element, Forward, Gate, Plan, Problem, Real, Step, f16};
use flashrnn_cpu::{Cpu, CpuPlan, Level, Subnormals};

/// `h' = h / 2 + g`, whose state and gradient halve with every step.
#[derive(Clone)]
struct Halving;

impl Cell for Halving {
    const NAME: &'static str = "halving";
    const STATES: &'static [&'static str] = &["h"];
    const GATES: &'static [Gate] = &[Gate::both("g")];
    type State<R: Real> = [R; 1];
    type Gates<R: Real> = [R; 1];

    #[inline(always)]
    fn forward<R: Real>(&self, [h]: [R; 1], [g]: [R; 1]) -> [R; 1] {
        [h * R::lit(0.5) + g]
    }
}

/// Runs without input from the state `start`, and backwards from the gradient `start` of the last
/// state. Returns the state after every step of the forward pass, the state after every call of
/// `step`, and the gradient of every step's input, last step first.
fn halve<T: Element>(cpu: &Cpu, time: usize, start: T) -> [Vec<f64>; 3] {
    let plan: CpuPlan<T, T> = common::plan(cpu, &Halving, &Problem::new(1, time, 1, 16));
    let shapes = plan.shapes();
    let zeros = |dims: &[usize]| vec![T::default(); common::len(dims)];
    let weights = plan.pack(&zeros(&shapes.r()), &zeros(&shapes.b())).unwrap();
    let (wx, s0) = (zeros(&shapes.wx()), [start.to_wide(); 16]);
    let (mut states, mut d_wx, mut saved) =
        (zeros(&shapes.states()), zeros(&shapes.wx()), plan.saved().unwrap());
    plan.forward(Forward {
        s0: Some(&s0[..]),
        states: Some(&mut states[..]),
        saved: Some(saved.view_mut()),
        ..Forward::new(&weights, &wx[..])
    })
    .unwrap();
    let d_last = [start.to_wide(); 16];
    let call = Backward::new(&weights, &states[..], saved.view(), &mut d_wx[..]);
    plan.backward(Backward { d_last: Some(&d_last[..]), ..call }).unwrap();
    d_wx.reverse();
    let (mut state, mut stepped) = (s0, Vec::new());
    for _ in 0..time {
        let mut h = [T::default(); 16];
        plan.step(Step {
            weights: &weights,
            wx: &wx[..16],
            state: &mut state[..],
            h: Some(&mut h[..]),
        })
        .unwrap();
        stepped.push(h[0].to_f64());
    }
    let first = |tensor: &[T]| tensor.iter().step_by(16).map(|x| x.to_f64()).collect();
    [first(&states), stepped, first(&d_wx)]
}

fn levels() -> impl Iterator<Item = Cpu> {
    let of = |threads| {
        Level::available()
            .into_iter()
            .map(move |level| Cpu::with_threads(threads).unwrap().with_level(level).unwrap())
    };
    of(1).chain(of(2))
}

/// Starts from twice the smallest normal number, so that the second step's state is subnormal.
fn check_flushed<T: Element>(smallest: T) {
    let start = T::from_f64(2.0 * smallest.to_f64());
    for cpu in levels() {
        let [forward, stepped, backward] = halve(&cpu, 4, start);
        let normal = smallest.to_f64();
        assert_eq!(forward, [normal, 0.0, 0.0, 0.0], "{cpu:?}");
        assert_eq!(stepped, forward, "{cpu:?}");
        assert_eq!(backward, [2.0 * normal, normal, 0.0, 0.0], "{cpu:?}");
        let [forward, stepped, backward] = halve(&cpu.with_subnormals(Subnormals::Keep), 4, start);
        assert_eq!(forward, [normal, normal / 2.0, normal / 4.0, normal / 8.0]);
        assert_eq!(stepped, forward);
        assert_eq!(backward, [2.0 * normal, normal, normal / 2.0, normal / 4.0]);
    }
}

#[test]
fn subnormals_of_f32_are_flushed() {
    check_flushed(f32::MIN_POSITIVE);
}

#[test]
fn subnormals_of_f64_are_flushed() {
    check_flushed(f64::MIN_POSITIVE);
}

#[test]
fn subnormals_of_f16_are_kept() {
    let start = f16::from_f64(2_f64.powi(-14));
    for cpu in levels() {
        let [forward, stepped, backward] = halve(&cpu, 9, start);
        let want: Vec<f64> = (1..10).map(|n| 2_f64.powi(-14 - n)).collect();
        assert_eq!(forward, want, "{cpu:?}");
        assert_eq!(stepped, want, "{cpu:?}");
        assert_eq!(backward[1..], want[..8], "{cpu:?}");
    }
}

/// Multiplies a number by 1 in this thread's mode.
fn times_one(x: f32) -> f32 {
    std::hint::black_box(std::hint::black_box(x) * std::hint::black_box(1.0))
}

#[test]
fn calls_restore_the_callers_mode() {
    let tiny = f32::from_bits(1);
    for subnormals in [Subnormals::Flush, Subnormals::Keep] {
        let cpu = Cpu::with_threads(1).unwrap().with_subnormals(subnormals);
        assert_eq!(times_one(tiny), tiny);
        halve(&cpu, 3, 1.0_f32);
        assert_eq!(times_one(tiny), tiny);
    }
}
