//! A graph of arithmetic operations, and the number type that records one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{Add, Div, Mul, Neg, Sub};

use super::op::{Binary, Id, Op, Unary};
use crate::Real;

/// A graph of operations that grows as code runs on its [`Expr`]s.
///
/// Equal operations on equal operands share one node.
#[derive(Debug, Default)]
pub struct Graph(RefCell<Inner>);

#[derive(Debug, Default)]
struct Inner {
    inputs: Vec<String>,
    nodes: Vec<Op>,
    ids: HashMap<Op, Id>,
}

impl Graph {
    /// Makes an empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an input and returns its handle.
    pub fn input(&self, name: impl Into<String>) -> Expr<'_> {
        let mut inner = self.0.borrow_mut();
        inner.inputs.push(name.into());
        let op = Op::Input(inner.inputs.len() - 1);
        drop(inner);
        Expr::Node { graph: self, id: self.node(op) }
    }

    /// Returns the names of the inputs, in order.
    pub(super) fn inputs(&self) -> Vec<String> {
        self.0.borrow().inputs.clone()
    }

    /// Returns all nodes recorded so far.
    pub(super) fn nodes(&self) -> Vec<Op> {
        self.0.borrow().nodes.clone()
    }

    /// Returns the node of `x`, adding one if `x` is a literal.
    pub(super) fn id(&self, x: Expr<'_>) -> Id {
        match x {
            Expr::Literal(v) => self.node(Op::Literal(v.to_bits())),
            Expr::Node { graph, id } => {
                debug_assert!(std::ptr::eq(graph, self), "an expression of another graph");
                id
            }
        }
    }

    /// Returns a handle to the number at `id`.
    pub(super) fn expr(&self, id: Id) -> Expr<'_> {
        match self.op(id) {
            Op::Literal(bits) => Expr::Literal(f64::from_bits(bits)),
            _ => Expr::Node { graph: self, id },
        }
    }

    /// Returns a handle to the mask at `id`.
    pub(super) fn mask(&self, id: Id) -> Mask<'_> {
        Mask::Node { graph: self, id }
    }

    fn op(&self, id: Id) -> Op {
        self.0.borrow().nodes[id]
    }

    /// Returns the node of the operation `op`, adding a node if there is none yet.
    fn node(&self, op: Op) -> Id {
        let key = match op {
            // Sums and products have the same bits in both orders.
            Op::Binary(op @ (Binary::Add | Binary::Mul), a, b) if a > b => Op::Binary(op, b, a),
            op => op,
        };
        let Inner { nodes, ids, .. } = &mut *self.0.borrow_mut();
        *ids.entry(key).or_insert_with(|| {
            nodes.push(op);
            nodes.len() - 1
        })
    }
}

/// A number that records the operations applied to it: a literal, or a node of a [`Graph`].
///
/// Operations that return their operand for every value, including infinities, NaN and both zeros,
/// are not recorded: `x * 1`, `x / 1`, `x + -0`, `x - 0`, `-(-x)`, and `select` between equals.
/// Negations are moved out of products and quotients and merged into sums without loss of accuracy:
/// `(-a) * b` becomes `-(a * b)`, and `a + (-b)` becomes `a - b`. (The sign and payload of a NaN
/// may change.) Nothing else is simplified: `x * 0` and `x + 0` are recorded.
///
/// A literal belongs to no graph, so operations on literals alone are not recorded but evaluated
/// immediately in f64.
#[derive(Clone, Copy, Debug)]
pub enum Expr<'g> {
    /// A constant.
    Literal(f64),
    /// A node.
    Node {
        /// Its graph.
        graph: &'g Graph,
        /// Its index in the graph.
        id: Id,
    },
}

/// The result of comparing two [`Expr`]s.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'g> {
    /// The result of comparing literals.
    Literal(bool),
    /// A node.
    Node {
        /// Its graph.
        graph: &'g Graph,
        /// Its index in the graph.
        id: Id,
    },
}

/// Compares handles, which are equal if they are the same literal, bit for bit, or the same node of
/// one graph.
impl PartialEq for Expr<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (*self, *other) {
            (Self::Literal(a), Self::Literal(b)) => a.to_bits() == b.to_bits(),
            (Self::Node { graph: ga, id: a }, Self::Node { graph: gb, id: b }) => {
                a == b && std::ptr::eq(ga, gb)
            }
            _ => false,
        }
    }
}

impl<'g> Expr<'g> {
    fn graph(self) -> Option<&'g Graph> {
        match self {
            Self::Literal(_) => None,
            Self::Node { graph, .. } => Some(graph),
        }
    }

    /// Returns `x` if this is the recorded operation `-x`.
    fn negated(self) -> Option<Self> {
        match self {
            Self::Literal(_) => None,
            Self::Node { graph, id } => match graph.op(id) {
                Op::Unary(Unary::Neg, x) => Some(graph.expr(x)),
                _ => None,
            },
        }
    }

    fn unary(op: Unary, x: Self) -> Self {
        match x {
            Self::Literal(v) => Self::Literal(op.apply(v)),
            Self::Node { graph, id } => Self::Node { graph, id: graph.node(Op::Unary(op, id)) },
        }
    }

    fn binary(op: Binary, a: Self, b: Self) -> Self {
        match (a, b) {
            (Self::Literal(a), Self::Literal(b)) => Self::Literal(op.apply(a, b)),
            (Self::Node { graph, .. }, _) | (_, Self::Node { graph, .. }) => {
                Self::Node { graph, id: graph.node(Op::Binary(op, graph.id(a), graph.id(b))) }
            }
        }
    }

    /// Records the number `value`, whose derivative is `slope` times the derivative of `source`.
    fn chain(value: Self, source: Self, slope: Self) -> Self {
        match value.graph().or(source.graph()) {
            None => value,
            Some(graph) => {
                let [value, source, slope] = [value, source, slope].map(|x| graph.id(x));
                Self::Node { graph, id: graph.node(Op::Chain { value, source, slope }) }
            }
        }
    }
}

impl Add for Expr<'_> {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        if o == Self::Literal(-0.0) {
            return self;
        }
        if self == Self::Literal(-0.0) {
            return o;
        }
        match (self.negated(), o.negated()) {
            (_, Some(o)) => Self::binary(Binary::Sub, self, o),
            (Some(x), None) => Self::binary(Binary::Sub, o, x),
            (None, None) => Self::binary(Binary::Add, self, o),
        }
    }
}

impl Sub for Expr<'_> {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        if o == Self::Literal(0.0) {
            return self;
        }
        match o.negated() {
            Some(o) => Self::binary(Binary::Add, self, o),
            None => Self::binary(Binary::Sub, self, o),
        }
    }
}

impl Mul for Expr<'_> {
    type Output = Self;
    fn mul(self, o: Self) -> Self {
        if o == Self::Literal(1.0) {
            return self;
        }
        if self == Self::Literal(1.0) {
            return o;
        }
        match (self.negated(), o.negated()) {
            (Some(x), Some(o)) => x * o,
            (Some(x), None) => -(x * o),
            (None, Some(o)) => -(self * o),
            (None, None) => Self::binary(Binary::Mul, self, o),
        }
    }
}

impl Div for Expr<'_> {
    type Output = Self;
    fn div(self, o: Self) -> Self {
        if o == Self::Literal(1.0) {
            return self;
        }
        match (self.negated(), o.negated()) {
            (Some(x), Some(o)) => x / o,
            (Some(x), None) => -(x / o),
            (None, Some(o)) => -(self / o),
            (None, None) => Self::binary(Binary::Div, self, o),
        }
    }
}

impl Neg for Expr<'_> {
    type Output = Self;
    fn neg(self) -> Self {
        self.negated().unwrap_or_else(|| Self::unary(Unary::Neg, self))
    }
}

impl<'g> Real for Expr<'g> {
    type Mask = Mask<'g>;

    fn lit(v: f64) -> Self {
        Self::Literal(v)
    }
    fn exp(self) -> Self {
        Self::unary(Unary::Exp, self)
    }
    fn ln(self) -> Self {
        Self::unary(Unary::Ln, self)
    }
    fn sqrt(self) -> Self {
        Self::unary(Unary::Sqrt, self)
    }
    fn abs(self) -> Self {
        Self::unary(Unary::Abs, self)
    }
    fn tanh(self) -> Self {
        Self::unary(Unary::Tanh, self)
    }
    fn softplus_neg_abs(self) -> Self {
        Self::unary(Unary::SoftplusNegAbs, self)
    }
    fn gt(self, other: Self) -> Mask<'g> {
        match (self, other) {
            (Self::Literal(a), Self::Literal(b)) => Mask::Literal(a > b),
            (Self::Node { graph, .. }, _) | (_, Self::Node { graph, .. }) => {
                Mask::Node { graph, id: graph.node(Op::Gt(graph.id(self), graph.id(other))) }
            }
        }
    }
    fn select(mask: Mask<'g>, if_true: Self, if_false: Self) -> Self {
        match mask {
            _ if if_true == if_false => if_true,
            Mask::Literal(true) => if_true,
            Mask::Literal(false) => if_false,
            Mask::Node { graph, id } => {
                let op = Op::Select(id, graph.id(if_true), graph.id(if_false));
                Self::Node { graph, id: graph.node(op) }
            }
        }
    }
    fn with_gradient_of(self, source: Self) -> Self {
        Self::chain(self, source, Self::lit(1.0))
    }
    fn clamp_min(self, bound: Self) -> Self {
        Self::binary(Binary::Max, self, bound)
    }
    fn clamp_max(self, bound: Self) -> Self {
        Self::binary(Binary::Min, self, bound)
    }
    fn sigmoid(self) -> Self {
        Self::unary(Unary::Sigmoid, self)
    }
    fn sigmoid_and_slope(self) -> (Self, Self) {
        (self.sigmoid(), Self::unary(Unary::SigmoidSlope, self))
    }
    fn tanh_and_slope(self) -> (Self, Self) {
        (self.tanh(), Self::unary(Unary::TanhSlope, self))
    }
    fn log_sigmoid(self) -> Self {
        // Differentiating the difference instead would take more operations and round worse.
        Self::chain(
            self.clamp_max(Self::lit(0.0)) - self.softplus_neg_abs(),
            self,
            (-self).sigmoid(),
        )
    }
}
