//! A traced function: the nodes of a graph that its named outputs depend on.

use super::expr::{Expr, Graph};
use super::op::{Id, Op, run};
use crate::Real;

/// A function from named inputs to named outputs, as operations in topological order. Every node
/// contributes to at least one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    inputs: Vec<String>,
    outputs: Vec<(String, Id)>,
    nodes: Vec<Op>,
}

impl Function {
    /// Makes the function from the inputs of `graph`, used or not, to `outputs`.
    pub fn new<'g>(
        graph: &'g Graph,
        outputs: impl IntoIterator<Item = (String, Expr<'g>)>,
    ) -> Self {
        // Replay the graph into a new one without `Op::Chain`, so that nodes that differed only in
        // their derivative are merged.
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

    /// Makes a function of the nodes in `all` that contribute to at least one of `outputs`.
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
        let mut new_id = vec![0; all.len()];
        for (id, op) in all.into_iter().enumerate().filter(|&(id, _)| live[id]) {
            new_id[id] = nodes.len();
            nodes.push(op.map(|operand| new_id[operand]));
        }
        for (_, id) in &mut outputs {
            *id = new_id[*id];
        }
        Self { inputs, outputs, nodes }
    }

    /// Splits the function in two, so that everything that depends only on the first `early` inputs
    /// can be computed before the other inputs are available. The first function takes the first
    /// `early` inputs and returns residuals, named `0`, `1`, and so on; the second takes the
    /// residuals, then the other inputs.
    pub fn split(&self, early: usize) -> (Self, Self) {
        let mut late: Vec<bool> = vec![];
        for &op in &self.nodes {
            let is_late = match op {
                Op::Input(k) => k >= early,
                _ => op.operands().into_iter().any(|operand| late[operand]),
            };
            late.push(is_late);
        }
        // Residuals are numbers, so a mask used by the second function is computed there.
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
        let residuals: Vec<Id> = (0..self.nodes.len())
            .filter(|&id| !late[id] && !matches!(self.nodes[id], Op::Literal(_)) && used_late(id))
            .collect();
        let names: Vec<String> = (0..residuals.len()).map(|k| k.to_string()).collect();
        let outputs = names.iter().cloned().zip(residuals.iter().copied()).collect();
        let first = Self::of_nodes(self.inputs[..early].to_vec(), outputs, self.nodes.clone());

        let nodes = self.nodes.iter().enumerate().map(|(id, &op)| {
            match (residuals.binary_search(&id), op) {
                (Ok(k), _) => Op::Input(k),
                (_, Op::Input(k)) => Op::Input((residuals.len() + k).saturating_sub(early)),
                _ => op,
            }
        });
        let inputs = names.into_iter().chain(self.inputs[early..].iter().cloned()).collect();
        let second = Self::of_nodes(inputs, self.outputs.clone(), nodes.collect());
        (first, second)
    }

    /// Returns the names of the inputs, in order.
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// Returns the name and the node of each output, in order.
    pub fn outputs(&self) -> &[(String, Id)] {
        &self.outputs
    }

    /// Returns the nodes in topological order. None is an [`Op::Chain`].
    pub fn nodes(&self) -> &[Op] {
        &self.nodes
    }

    /// Returns the number of operations, which are the nodes other than inputs and literals.
    pub fn operations(&self) -> usize {
        self.nodes.iter().filter(|op| !matches!(op, Op::Input(_) | Op::Literal(_))).count()
    }

    /// Evaluates the outputs at `inputs`, both in order.
    ///
    /// # Panics
    /// If `inputs` lacks an input that the function uses.
    pub fn eval<R: Real>(&self, inputs: &[R]) -> Vec<R> {
        let values = run(&self.nodes, inputs);
        self.outputs.iter().map(|&(_, id)| values[id].number()).collect()
    }
}
