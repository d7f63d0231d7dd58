//! A graph with named results, cleaned up: what is interpreted, counted and printed.

use super::expr::{Expr, Graph};
use super::op::{Id, Op, run};
use crate::Real;

/// Operations in an order in which they can run, from named inputs to named outputs. Every node serves an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    inputs: Vec<String>,
    outputs: Vec<(String, Id)>,
    nodes: Vec<Op>,
}

impl Function {
    /// The function from the inputs of `graph`, used or not, to `outputs`.
    pub fn new<'g>(graph: &'g Graph, outputs: impl IntoIterator<Item = (String, Expr<'g>)>) -> Self {
        // Run once more into a graph of its own, where what differed in its derivative alone is the same node.
        let outputs: Vec<(String, Id)> = outputs.into_iter().map(|(name, x)| (name, graph.id(x))).collect();
        let clean = Graph::new();
        let inputs = graph.inputs();
        let values = run(&graph.nodes(), &inputs.iter().map(|name| clean.input(name)).collect::<Vec<_>>());
        let mut outputs: Vec<(String, Id)> =
            outputs.into_iter().map(|(name, id)| (name, clean.id(values[id].number()))).collect();

        // Keep what the outputs need.
        let all = clean.nodes();
        let mut live = vec![false; all.len()];
        for &(_, id) in &outputs {
            live[id] = true;
        }
        for id in (0..all.len()).rev() {
            if live[id] {
                for operand in all[id].operands() {
                    live[operand] = true;
                }
            }
        }
        let mut nodes = vec![];
        let mut place = vec![0; all.len()];
        for (id, op) in all.into_iter().enumerate().filter(|&(id, _)| live[id]) {
            place[id] = nodes.len();
            nodes.push(op.map(|operand| place[operand]));
        }
        for (_, id) in &mut outputs {
            *id = place[*id];
        }
        Self { inputs, outputs, nodes }
    }

    /// The names of the inputs, in order.
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// The names of the outputs, in order, and the node that each is.
    pub fn outputs(&self) -> &[(String, Id)] {
        &self.outputs
    }

    /// The nodes. Operands come before what uses them; no node is a [`Op::Chain`].
    pub fn nodes(&self) -> &[Op] {
        &self.nodes
    }

    /// How many operations it has: nodes other than inputs and literals.
    pub fn operations(&self) -> usize {
        self.nodes.iter().filter(|op| !matches!(op, Op::Input(_) | Op::Literal(_))).count()
    }

    /// The outputs at `inputs`, both in order.
    ///
    /// # Panics
    /// Where `inputs` are fewer than [`inputs`](Function::inputs).
    pub fn eval<R: Real>(&self, inputs: &[R]) -> Vec<R> {
        let values = run(&self.nodes, inputs);
        self.outputs.iter().map(|&(_, id)| values[id].number()).collect()
    }
}
