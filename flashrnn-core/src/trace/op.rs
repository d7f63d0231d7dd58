//! The operations of a graph.

use crate::Real;

/// The index of a node in its graph or function. Operands precede the operations that use them.
pub type Id = usize;

/// A node of a graph or function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The input with this index.
    Input(usize),
    /// A constant, as the bits of an f64. Number types round it as [`Real::lit`] does.
    Literal(u64),
    /// A function of one number.
    Unary(Unary, Id),
    /// A function of two numbers.
    Binary(Binary, Id, Id),
    /// The mask `a > b`.
    Gt(Id, Id),
    /// The second operand where the first, a mask, is set; else the third.
    Select(Id, Id, Id),
    /// The number `value`, whose derivative is `slope` times the derivative of `source`. Occurs in
    /// graphs, which are differentiated, but not in functions.
    Chain {
        /// The number.
        value: Id,
        /// The number it is differentiated through.
        source: Id,
        /// The derivative with respect to `source`.
        slope: Id,
    },
}

/// The functions of one number, defined as in [`Real`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named after the methods of Real")]
pub enum Unary {
    Neg,
    Exp,
    Ln,
    Sqrt,
    Abs,
    Tanh,
    /// The slope returned by [`Real::tanh_and_slope`].
    TanhSlope,
    Sigmoid,
    /// The slope returned by [`Real::sigmoid_and_slope`].
    SigmoidSlope,
    SoftplusNegAbs,
}

/// The functions of two numbers, defined as in [`Real`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named after the methods of Real")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// [`Real::clamp_min`]: NaN in the first operand propagates, NaN in the second is ignored.
    Max,
    /// [`Real::clamp_max`]: NaN in the first operand propagates, NaN in the second is ignored.
    Min,
}

impl Unary {
    /// Evaluates the function at `x`.
    pub(super) fn apply<R: Real>(self, x: R) -> R {
        match self {
            Self::Neg => -x,
            Self::Exp => x.exp(),
            Self::Ln => x.ln(),
            Self::Sqrt => x.sqrt(),
            Self::Abs => x.abs(),
            Self::Tanh => x.tanh(),
            Self::TanhSlope => x.tanh_and_slope().1,
            Self::Sigmoid => x.sigmoid(),
            Self::SigmoidSlope => x.sigmoid_and_slope().1,
            Self::SoftplusNegAbs => x.softplus_neg_abs(),
        }
    }
}

impl Binary {
    /// Evaluates the function at `a` and `b`.
    pub(super) fn apply<R: Real>(self, a: R, b: R) -> R {
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
            Self::Max => a.clamp_min(b),
            Self::Min => a.clamp_max(b),
        }
    }
}

impl Op {
    /// Returns the nodes this operation reads.
    pub(super) fn operands(self) -> Vec<Id> {
        let mut operands = vec![];
        self.map(|id| {
            operands.push(id);
            id
        });
        operands
    }

    /// Returns this operation with `f` applied to each operand.
    pub(super) fn map(self, mut f: impl FnMut(Id) -> Id) -> Self {
        match self {
            Self::Input(_) | Self::Literal(_) => self,
            Self::Unary(op, x) => Self::Unary(op, f(x)),
            Self::Binary(op, a, b) => Self::Binary(op, f(a), f(b)),
            Self::Gt(a, b) => Self::Gt(f(a), f(b)),
            Self::Select(mask, a, b) => Self::Select(f(mask), f(a), f(b)),
            Self::Chain { value, source, slope } => {
                Self::Chain { value: f(value), source: f(source), slope: f(slope) }
            }
        }
    }
}

/// The value of a node when a graph is run on the number type `R`.
#[derive(Clone, Copy)]
pub(super) enum Value<R: Real> {
    Number(R),
    Mask(R::Mask),
}

impl<R: Real> Value<R> {
    pub(super) fn number(self) -> R {
        match self {
            Self::Number(x) => x,
            Self::Mask(_) => {
                unreachable!("graphs are built from typed handles, so this operand is a number")
            }
        }
    }

    fn mask(self) -> R::Mask {
        match self {
            Self::Mask(mask) => mask,
            Self::Number(_) => {
                unreachable!("graphs are built from typed handles, so this operand is a mask")
            }
        }
    }
}

/// Runs `nodes` on the number type `R` and returns the value of each.
pub(super) fn run<R: Real>(nodes: &[Op], inputs: &[R]) -> Vec<Value<R>> {
    let mut values: Vec<Value<R>> = Vec::with_capacity(nodes.len());
    for &op in nodes {
        let number = |id: Id| values[id].number();
        values.push(match op {
            Op::Input(k) => Value::Number(inputs[k]),
            Op::Literal(bits) => Value::Number(R::lit(f64::from_bits(bits))),
            Op::Unary(op, x) => Value::Number(op.apply(number(x))),
            Op::Binary(op, a, b) => Value::Number(op.apply(number(a), number(b))),
            Op::Gt(a, b) => Value::Mask(number(a).gt(number(b))),
            Op::Select(mask, a, b) => {
                Value::Number(R::select(values[mask].mask(), number(a), number(b)))
            }
            Op::Chain { value, .. } => values[value],
        });
    }
    values
}
