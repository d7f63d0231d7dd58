//! A graph with named results, cleaned up: what is interpreted, counted and printed.

use super::expr::{Expr, Graph};
use super::op::{Id, Op, run};
use crate::Real;

/// Operations in an order in which they can run, from named inputs to named outputs. Every node
/// serves an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    inputs: Vec<String>,
    outputs: Vec<(String, Id)>,
    nodes: Vec<Op>,
}

impl Function {
    /// The function from the inputs of `graph`, used or not, to `outputs`.
    pub fn new<'g>(
        graph: &'g Graph,
        outputs: impl IntoIterator<Item = (String, Expr<'g>)>,
    ) -> Self {
        // Run once more into a graph of its own, where what differed in its derivative alone is the
        // same node.
        let outputs: Vec<(String, Id)> =
            outputs.into_iter().map(|(name, x)| (name, graph.id(x))).collect();
        let clean = Graph::new();
        let inputs = graph.inputs();
        let values =
            run(&graph.nodes(), &inputs.iter().map(|name| clean.input(name)).collect::<Vec<_>>());
        let outputs =
            outputs.into_iter().map(|(name, id)| (name, clean.id(values[id].number()))).collect();
        Self::of_nodes(inputs, outputs, clean.nodes())
    }

    /// The function of these nodes, without those that no output needs.
    fn of_nodes(inputs: Vec<String>, mut outputs: Vec<(String, Id)>, all: Vec<Op>) -> Self {
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

    /// The same in two functions, so that what the first `early` inputs determine can be computed
    /// before the others are there: the first gives what the second needs of it, named `0`, `1`, …;
    /// the second takes that, then the other inputs.
    pub fn split(&self, early: usize) -> (Self, Self) {
        let mut late: Vec<bool> = vec![];
        for &op in &self.nodes {
            let is_late = match op {
                Op::Input(k) => k >= early,
                _ => op.operands().into_iter().any(|operand| late[operand]),
            };
            late.push(is_late);
        }
        // What is handed over are numbers: a mask is taken again.
        for (id, &op) in self.nodes.iter().enumerate().rev() {
            if let (true, Op::Select(mask, ..)) = (late[id], op) {
                late[mask] = true;
            }
        }
        let used_late = |id: Id| {
            let by_nodes = (id + 1..self.nodes.len())
                .any(|user| late[user] && self.nodes[user].operands().contains(&id));
            by_nodes || self.outputs.iter().any(|&(_, output)| output == id)
        };
        let handed_over: Vec<Id> = (0..self.nodes.len())
            .filter(|&id| !late[id] && !matches!(self.nodes[id], Op::Literal(_)) && used_late(id))
            .collect();
        let names: Vec<String> = (0..handed_over.len()).map(|k| k.to_string()).collect();
        let outputs = names.iter().cloned().zip(handed_over.iter().copied()).collect();
        let first = Self::of_nodes(self.inputs[..early].to_vec(), outputs, self.nodes.clone());

        let nodes = self.nodes.iter().enumerate().map(|(id, &op)| {
            match (handed_over.binary_search(&id), op) {
                (Ok(k), _) => Op::Input(k),
                (_, Op::Input(k)) => Op::Input((handed_over.len() + k).saturating_sub(early)),
                _ => op,
            }
        });
        let inputs = names.into_iter().chain(self.inputs[early..].iter().cloned()).collect();
        let second = Self::of_nodes(inputs, self.outputs.clone(), nodes.collect());
        (first, second)
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
