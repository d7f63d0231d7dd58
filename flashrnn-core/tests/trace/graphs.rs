//! Tests which operations a graph records, merges and simplifies.

use flashrnn_core::trace::{Binary, Expr, Function, Graph, Op, Unary, backward, forward};
use flashrnn_core::{Lstm, Real};

use crate::cells::{Derived, Everything, Stairs, Wordy};

fn function<'g>(graph: &'g Graph, x: Expr<'g>) -> Function {
    Function::new(graph, [("y".to_string(), x)])
}

fn lit<'g>(v: f64) -> Expr<'g> {
    Expr::lit(v)
}

#[test]
fn equal_operations_are_one_node() {
    let graph = Graph::new();
    let (a, b) = (graph.input("a"), graph.input("b"));
    assert_eq!(a + b, b + a);
    assert_eq!(a * b, b * a);
    assert_eq!(a.exp(), a.exp());
    assert_ne!(a - b, b - a);
    assert_ne!(a.clamp_min(b), b.clamp_min(a));
    assert_ne!(a * lit(0.0), a * lit(-0.0));
    assert_eq!(Expr::select(a.gt(b), a, b), Expr::select(a.gt(b), a, b));
    let y = (a + b) * (b + a) + (a + b).exp();
    assert_eq!(function(&graph, y).operations(), 4);
}

/// Only operations that never change the bits of their operand are simplified.
#[test]
fn only_exact_identities_are_simplified() {
    let graph = Graph::new();
    let (a, b) = (graph.input("a"), graph.input("b"));
    let (zero, one) = (lit(0.0), lit(1.0));
    for same in [
        a * one,
        one * a,
        a / one,
        a + lit(-0.0),
        lit(-0.0) + a,
        a - zero,
        -(-a),
        Expr::select(a.gt(b), a, a),
    ] {
        assert_eq!(same, a);
    }
    assert_eq!(a + (-b), a - b);
    assert_eq!((-a) + b, b - a);
    assert_eq!(a - (-b), a + b);
    assert_eq!((-a) * b, -(a * b));
    assert_eq!((-a) / (-b), a / b);
    for kept in [
        a + zero,
        a - lit(-0.0),
        a * zero,
        zero / a,
        a - a,
        a / a,
        -(a - b),
        a.clamp_min(a),
        a.clamp_max(zero),
    ] {
        assert!(function(&graph, kept).operations() >= 1, "{kept:?}");
        assert_ne!(kept, a);
    }
    for folded in [
        lit(2.0) + lit(3.0),
        lit(10.0) / lit(2.0),
        lit(25.0).sqrt(),
        lit(7.0).clamp_max(lit(5.0)),
        -lit(-5.0),
    ] {
        assert_eq!(folded, lit(5.0));
    }
    assert_eq!(Expr::select(one.gt(zero), a, b), a);
    assert_eq!(Expr::select(lit(f64::NAN).gt(zero), a, b), b);
}

/// A function keeps the names of all inputs, but only the nodes that its outputs depend on.
#[test]
fn dead_nodes_are_left_out() {
    let graph = Graph::new();
    let (a, b) = (graph.input("a"), graph.input("b"));
    let _ = (a * b).tanh();
    let f = function(&graph, b.exp());
    assert_eq!(f.inputs(), ["a", "b"]);
    assert_eq!(f.nodes(), [Op::Input(1), Op::Unary(Unary::Exp, 0)]);
    assert_eq!(f.outputs(), [("y".to_string(), 1)]);
    assert_eq!(f.eval(&[9.0, 0.0]), [1.0]);
    assert_eq!(function(&graph, lit(4.0)).eval::<f32>(&[0.0, 0.0]), [4.0]);
}

/// Functions hold no information about derivatives, so nodes that differed only in their derivative
/// are merged.
#[test]
fn functions_hold_no_derivatives() {
    let graph = Graph::new();
    let a = graph.input("a");
    let f =
        function(&graph, a.exp().stop_gradient() + a.exp() + a.log_sigmoid().with_gradient_of(a));
    let count = |op: fn(&Op) -> bool| f.nodes().iter().filter(|node| op(node)).count();
    assert_eq!(count(|op| matches!(op, Op::Chain { .. })), 0);
    assert_eq!(count(|op| matches!(op, Op::Unary(Unary::Exp, _))), 1);
    assert_eq!(count(|op| matches!(op, Op::Unary(Unary::Sigmoid, _))), 0);
    assert_eq!(count(|op| matches!(op, Op::Binary(Binary::Min, ..))), 1);
}

/// An overridden `backward` is kept even if reverse mode is shorter.
#[test]
fn written_backward_is_kept() {
    let [written, reverse] = [backward(&Wordy), backward(&Derived(Wordy))].map(|f| f.operations());
    assert!(reverse < written, "{reverse}, {written}");
}

/// Without an overridden `backward`, the shorter of reverse and forward mode is used. Here that is
/// forward mode, which recognises that both branches have slope 1.
#[test]
fn shorter_backward_is_taken() {
    let f = backward(&Stairs);
    assert_eq!(f.operations(), 1);
    assert_eq!(f.eval(&[0.0, 5.0, 3.0]), [0.0, 3.0]);
}

/// The incoming gradient of a constant state is ignored, and the gradient returned for it is 0,
/// whatever the slopes.
#[test]
fn constant_states() {
    let f = backward(&Everything);
    let given = f.inputs().iter().position(|name| name == "d_α β");
    assert!(given.is_some_and(|k| !f.nodes().contains(&Op::Input(k))));
    assert_eq!(f.outputs()[2].0, "d_α β");
    assert_eq!(f.nodes()[f.outputs()[2].1], Op::Literal(0));
}

#[test]
fn names() {
    assert_eq!(forward(&Lstm).inputs(), ["h", "c", "i", "f", "z", "o"]);
    assert_eq!(backward(&Lstm).inputs(), ["h", "c", "i", "f", "z", "o", "d_h", "d_c"]);
    let outputs: Vec<String> =
        backward(&Lstm).outputs().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(outputs, ["d_h", "d_c", "d_i", "d_f", "d_z", "d_o"]);
}
