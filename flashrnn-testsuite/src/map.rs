//! Permutes, selects and joins the rows, heads and steps of cases and results, so that properties
//! can compare related runs.

use flashrnn_core::{Options, Problem, Shapes};

use crate::case::Case;
use crate::results::Results;

/// Maps each row, head and step of new tensors to the old one it is copied from.
pub struct Map<'a> {
    /// The shapes of the old tensors.
    pub from: &'a Shapes,
    /// The shapes of the new tensors.
    pub to: &'a Shapes,
    /// The old row of each new row.
    pub rows: Vec<usize>,
    /// The old head of each new head.
    pub heads: Vec<usize>,
    /// Maps a new row and step to the old step.
    pub step: &'a dyn Fn(usize, usize) -> usize,
}

impl<'a> Map<'a> {
    /// Makes the map that keeps every row, head and step.
    pub fn new(from: &'a Shapes, to: &'a Shapes) -> Self {
        Self {
            from,
            to,
            rows: (0..to.batch).collect(),
            heads: (0..to.heads).collect(),
            step: &|_, t| t,
        }
    }

    /// Returns the old index of every new element of a tensor `[K, B, T, L, N, D]` (or
    /// time-major). `states` has `L = 1`, and `wx` has `K = 1`.
    fn sequence(&self, k: usize, l: usize) -> Vec<usize> {
        let (from, to) = (self.from, self.to);
        let mut old = vec![0; k * l * to.tokens() * to.units()];
        for k in 0..k {
            for b in 0..to.batch {
                for t in 0..to.time {
                    let source = k * from.tokens() + from.token(self.rows[b], (self.step)(b, t));
                    let target = k * to.tokens() + to.token(b, t);
                    for i in 0..l {
                        self.units(&mut old, target * l + i, source * l + i, 1);
                    }
                }
            }
        }
        old
    }

    /// Does the same as [`sequence`](Map::sequence) for a tensor `[K, B, N, D]`.
    fn state(&self, k: usize) -> Vec<usize> {
        let mut old = vec![0; k * self.to.batch * self.to.units()];
        for k in 0..k {
            for (b, &row) in self.rows.iter().enumerate() {
                self.units(&mut old, k * self.to.batch + b, k * self.from.batch + row, 1);
            }
        }
        old
    }

    /// Does the same as [`sequence`](Map::sequence) for a tensor `[K, N, D, E]`.
    fn weights(&self, k: usize, e: usize) -> Vec<usize> {
        let mut old = vec![0; k * self.to.units() * e];
        for k in 0..k {
            self.units(&mut old, k, k, e);
        }
        old
    }

    /// Fills in the old indices of one block `[N, D, E]`. `target` and `source` are the indices of
    /// the new and the old block.
    fn units(&self, old: &mut [usize], target: usize, source: usize, e: usize) {
        let size = self.to.head_dim * e;
        for (n, &head) in self.heads.iter().enumerate() {
            let from = (source * self.from.heads + head) * size;
            for (i, old) in
                old[(target * self.to.heads + n) * size..][..size].iter_mut().enumerate()
            {
                *old = from + i;
            }
        }
    }

    /// Returns the old index of every new element of the tensor called `name`.
    fn positions(&self, name: &str) -> Vec<usize> {
        let Shapes { states, external, recurrent, gates, head_dim, .. } = *self.from;
        match name {
            "h" => self.sequence(1, 1),
            "states" => self.sequence(states, 1),
            "d_wx" => self.sequence(1, external),
            "d_r" => self.weights(recurrent, head_dim),
            "d_b" => self.weights(gates, 1),
            _ => self.state(states),
        }
    }

    /// Maps a case to the sizes and layout of the new shapes. Lengths move with their rows, but
    /// keep their values.
    pub fn case(&self, case: &Case) -> Case {
        let to = self.to;
        let x = &case.inputs;
        let take =
            |x: &[f64], name| self.positions(name).into_iter().map(|i| x[i]).collect::<Vec<f64>>();
        let mut new = case.clone();
        new.problem = Problem {
            batch: to.batch,
            time: to.time,
            heads: to.heads,
            head_dim: to.head_dim,
            options: Options { layout: to.layout, ..case.problem.options },
        };
        new.inputs.wx = take(&x.wx, "d_wx");
        new.inputs.r = take(&x.r, "d_r");
        new.inputs.b = take(&x.b, "d_b");
        new.inputs.s0 = x.s0.as_ref().map(|s0| take(s0, "d_s0"));
        new.inputs.lengths =
            x.lengths.as_ref().map(|old| self.rows.iter().map(|&b| old[b]).collect());
        new.inputs.resets = x.resets.as_ref().map(|old| {
            let mut flags = vec![0; to.tokens()];
            for b in 0..to.batch {
                for t in 0..to.time {
                    flags[to.token(b, t)] = old[self.from.token(self.rows[b], (self.step)(b, t))];
                }
            }
            flags
        });
        new.d.d_states = case.d.d_states.as_ref().map(|d| take(d, "states"));
        new.d.d_last = case.d.d_last.as_ref().map(|d| take(d, "d_s0"));
        new
    }

    /// Maps results to the new shapes. `d_r` and `d_b` remain sums over the whole old batch.
    pub fn results(&self, results: &Results) -> Results {
        let mut new = Results::default();
        for (name, x) in results.iter() {
            new.push(name, self.positions(name).into_iter().map(|i| x[i]).collect());
        }
        new
    }

    /// Copies `part`, results in the new shapes, back to its old place in `whole`. `d_r` and `d_b`
    /// are added instead.
    pub fn paste(&self, part: &Results, whole: &mut Results) {
        for (name, part) in part.iter() {
            let whole = whole.get_mut(name);
            for (i, &v) in self.positions(name).into_iter().zip(part) {
                if name == "d_r" || name == "d_b" { whole[i] += v } else { whole[i] = v }
            }
        }
    }
}

/// Returns the length of each row.
pub fn lengths(case: &Case) -> Vec<usize> {
    let all = || vec![case.problem.time; case.problem.batch];
    case.inputs
        .lengths
        .as_ref()
        .map_or_else(all, |lengths| lengths.iter().map(|&n| n as usize).collect())
}
