//! Random test cases: a problem with all of its inputs, generated from a seed.

use flashrnn_core::reference::{self, Inputs, OutputGradients};
use flashrnn_core::{Cell, Element, Problem, Result};

use crate::random::Random;

/// Selects the optional tensors of a case and the distribution of its inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tensors {
    /// An initial state.
    pub s0: bool,
    /// Lengths from 0 to T. If there are at least two rows, one length is 0 and one is T.
    pub lengths: bool,
    /// Resets at about one step in ten.
    pub resets: bool,
    /// The gradient of every state at every step.
    pub d_states: bool,
    /// The gradient of each row's final state.
    pub d_last: bool,
    /// Sets about one input pre-activation in ten to -90, and one in fifty to 90.
    pub extreme: bool,
}

impl Tensors {
    /// Every optional tensor, with ordinary values.
    pub const ALL: Self = Self {
        s0: true,
        lengths: true,
        resets: true,
        d_states: true,
        d_last: true,
        extreme: false,
    };

    /// No optional input, and only the gradient of the states.
    pub const PLAIN: Self = Self {
        s0: false,
        lengths: false,
        resets: false,
        d_states: true,
        d_last: false,
        extreme: false,
    };
}

/// A problem, its inputs, and the incoming gradients of its backward pass. Values are stored as f64
/// and are exactly representable in the element types the case was generated for.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Sizes, layout and options.
    pub problem: Problem,
    /// The inputs of the forward pass.
    pub inputs: Inputs,
    /// The incoming gradients of the backward pass.
    pub d: OutputGradients,
}

impl Case {
    /// Generates a random case for `cell` with tensors of `T` and weights of `W`. Equal arguments
    /// yield equal cases.
    ///
    /// `wx`, `b` and the gradients are drawn from N(0, 1), and `r` from N(0, 1)/√D. `s0` is the
    /// final state of another random run, or zero in about one row of four, because only such
    /// initial states are valid for every cell. `wx` and `d_states` are rounded to `T`, `r` and `b`
    /// to `W`, and `s0` and `d_last` to `T::Wide`.
    ///
    /// # Errors
    /// [`Error::InvalidProblem`](flashrnn_core::Error::InvalidProblem) if the problem is invalid.
    pub fn random<C: Cell, T: Element, W: Element>(
        cell: &C,
        problem: &Problem,
        tensors: Tensors,
        seed: u64,
    ) -> Result<Self> {
        let shapes = problem.shapes::<C>()?;
        let mut random = Random::new(seed);
        let size = |shape: &[usize]| shape.iter().product::<usize>();
        let r = random.normals(size(&shapes.r()), 1.0 / (shapes.head_dim as f64).sqrt());
        let b = random.normals(size(&shapes.b()), 1.0);
        let mut wx = random.normals(size(&shapes.wx()), 1.0);
        if tensors.extreme {
            for x in &mut wx {
                match random.below(50) {
                    0..5 => *x = -90.0,
                    5 => *x = 90.0,
                    _ => {}
                }
            }
        }
        let mut inputs = Inputs {
            wx: rounded::<T>(wx),
            r: rounded::<W>(r),
            b: rounded::<W>(b),
            range: range::<T>(),
            ..Inputs::default()
        };
        if tensors.s0 {
            let earlier = Problem { time: 2, ..problem.clone() };
            let wx = random.normals(size(&earlier.shapes::<C>()?.wx()), 1.0);
            let run = reference::forward(cell, &earlier, &Inputs { wx, ..inputs.clone() })?;
            // last: [S, B, N, D]
            let mut s0 = rounded::<T::Wide>(run.last);
            for row in 0..shapes.batch {
                if random.chance(0.25) {
                    for state in 0..shapes.states {
                        s0[(state * shapes.batch + row) * shapes.units()..][..shapes.units()]
                            .fill(0.0);
                    }
                }
            }
            inputs.s0 = Some(s0);
        }
        if tensors.lengths {
            let mut lengths: Vec<i32> =
                (0..shapes.batch).map(|_| random.below(shapes.time + 1) as i32).collect();
            if shapes.batch >= 2 {
                let rows = random.permutation(shapes.batch);
                lengths[rows[0]] = 0;
                lengths[rows[1]] = shapes.time as i32;
            }
            inputs.lengths = Some(lengths);
        }
        if tensors.resets {
            // Any nonzero value sets a flag.
            let flag = |random: &mut Random| {
                if random.chance(0.1) { 1 + random.below(255) as u8 } else { 0 }
            };
            inputs.resets = Some((0..shapes.tokens()).map(|_| flag(&mut random)).collect());
        }
        let mut d = OutputGradients::default();
        if tensors.d_states {
            d.d_states = Some(rounded::<T>(random.normals(size(&shapes.states()), 1.0)));
        }
        if tensors.d_last {
            d.d_last = Some(rounded::<T::Wide>(random.normals(size(&shapes.state()), 1.0)));
        }
        Ok(Self { problem: problem.clone(), inputs, d })
    }
}

/// Returns the bound at which stored states saturate, or `None` if `T` does not saturate.
pub fn range<T: Element>() -> Option<f64> {
    (size_of::<T>() < size_of::<T::Wide>()).then_some(T::MAX)
}

/// Rounds each of `values` to the element type `P`.
pub fn rounded<P: Element>(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|v| P::from_f64(v).to_f64()).collect()
}
