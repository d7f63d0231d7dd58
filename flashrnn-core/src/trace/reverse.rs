//! Reverse-mode differentiation of a graph.

use super::expr::{Expr, Graph};
use super::op::{Binary, Id, Op, Unary};
use crate::Real;

/// Accumulates the gradient of a loss with respect to each node. `None` means 0 and costs no
/// operations.
struct Gradients<'g>(Vec<Option<Expr<'g>>>);

impl<'g> Gradients<'g> {
    /// Adds `d` to the gradient of node `id`. Ignores a literal 0, which marks an output or a path
    /// without gradient.
    fn add(&mut self, id: Id, d: Expr<'g>) {
        if d != Expr::lit(0.0) {
            self.0[id] = Some(self.0[id].map_or(d, |sum| sum + d));
        }
    }
}

/// Returns the gradients of a loss with respect to `inputs`, from `outputs`, which pairs each
/// output with the gradient of the loss with respect to it.
///
/// Every rule is the transpose of [`Dual`](crate::Dual)'s; the rules of the two slopes round
/// differently.
pub(super) fn gradients<'g>(
    graph: &'g Graph,
    inputs: &[Expr<'g>],
    outputs: impl IntoIterator<Item = (Expr<'g>, Expr<'g>)>,
) -> Vec<Expr<'g>> {
    let zero = Expr::lit(0.0);
    let outputs: Vec<(Id, Expr<'g>)> = outputs.into_iter().map(|(y, d)| (graph.id(y), d)).collect();
    let nodes = graph.nodes();
    let mut sums = Gradients(vec![None; nodes.len()]);
    for (id, d) in outputs {
        sums.add(id, d);
    }
    let expr = |id| graph.expr(id);
    for (id, &op) in nodes.iter().enumerate().rev() {
        let Some(d) = sums.0[id] else { continue };
        match op {
            Op::Input(_) | Op::Literal(_) | Op::Gt(..) => {}
            Op::Unary(op, x) => sums.add(x, through_unary(op, expr(x), expr(id), d)),
            Op::Binary(op, a, b) => {
                let (d_a, d_b) = through_binary(op, expr(a), expr(b), expr(id), d);
                sums.add(a, d_a);
                sums.add(b, d_b);
            }
            Op::Select(mask, a, b) => {
                sums.add(a, Expr::select(graph.mask(mask), d, zero));
                sums.add(b, Expr::select(graph.mask(mask), zero, d));
            }
            Op::Chain { source, slope, .. } => sums.add(source, d * expr(slope)),
        }
    }
    inputs.iter().map(|&x| sums.0[graph.id(x)].unwrap_or(zero)).collect()
}

/// Returns the gradient with respect to `x`, from the gradient `d` with respect to `y = op(x)`.
fn through_unary<'g>(op: Unary, x: Expr<'g>, y: Expr<'g>, d: Expr<'g>) -> Expr<'g> {
    let zero = Expr::lit(0.0);
    match op {
        Unary::Neg => -d,
        Unary::Exp => d * y,
        Unary::Ln => d / x,
        Unary::Sqrt => d * (Expr::lit(0.5) / y),
        Unary::Abs => Expr::select(x.gt(zero), d, Expr::select(zero.gt(x), -d, zero)),
        Unary::Tanh => d * x.tanh_and_slope().1,
        Unary::Sigmoid => d * x.sigmoid_and_slope().1,
        // (1 - tanh²)' = -2 tanh (1 - tanh²)
        Unary::TanhSlope => -(d * (Expr::lit(2.0) * x.tanh() * y)),
        // (σ (1 - σ))' = σ (1 - σ) (1 - 2 σ), where 1 - 2 σ(x) = -tanh(x / 2)
        Unary::SigmoidSlope => -(d * ((Expr::lit(0.5) * x).tanh() * y)),
        // (ln(1 + exp(-|x|)))' = -sign(x) σ(-|x|)
        Unary::SoftplusNegAbs => {
            let slope = (-x.abs()).sigmoid();
            d * Expr::select(x.gt(zero), -slope, slope)
        }
    }
}

/// Returns the gradients with respect to `a` and `b`, from the gradient `d` with respect to
/// `y = op(a, b)`.
fn through_binary<'g>(
    op: Binary,
    a: Expr<'g>,
    b: Expr<'g>,
    y: Expr<'g>,
    d: Expr<'g>,
) -> (Expr<'g>, Expr<'g>) {
    let zero = Expr::lit(0.0);
    // The gradient flows to the bound `b` where the clamp is active, else to the number `a`.
    let clamped = |active| (Expr::select(active, zero, d), Expr::select(active, d, zero));
    match op {
        Binary::Add => (d, d),
        Binary::Sub => (d, -d),
        Binary::Mul => (d * b, d * a),
        Binary::Div => {
            let d_a = d / b;
            (d_a, -(d_a * y))
        }
        Binary::Max => clamped(b.gt(a)),
        Binary::Min => clamped(a.gt(b)),
    }
}
