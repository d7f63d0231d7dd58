//! Moves the rows, heads and steps of a case or of results about: the transformations that the
//! properties compare by.

use flashrnn_core::{Options, Problem, Shapes};

use crate::case::Case;
use crate::results::Results;

/// Where each row, head and step of the new tensors comes from.
pub struct Map<'a> {
    /// The shapes of the tensors there are.
    pub from: &'a Shapes,
    /// The shapes of the tensors to make.
    pub to: &'a Shapes,
    /// The old row of each new row.
    pub rows: Vec<usize>,
    /// The old head of each new head.
    pub heads: Vec<usize>,
    /// The old step of a new row's new step.
    pub step: &'a dyn Fn(usize, usize) -> usize,
}

impl<'a> Map<'a> {
    /// Keeps every row, head and step.
    pub fn new(from: &'a Shapes, to: &'a Shapes) -> Self {
        Self {
            from,
            to,
            rows: (0..to.batch).collect(),
            heads: (0..to.heads).collect(),
            step: &|_, t| t,
        }
    }

    /// The old position of every new element of a tensor `[K, B, T, L, N, D]` (or time-major):
    /// `states` with `L = 1`, `wx` with `K = 1`.
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

    /// The same for `[K, B, N, D]`.
    fn state(&self, k: usize) -> Vec<usize> {
        let mut old = vec![0; k * self.to.batch * self.to.units()];
        for k in 0..k {
            for (b, &row) in self.rows.iter().enumerate() {
                self.units(&mut old, k * self.to.batch + b, k * self.from.batch + row, 1);
            }
        }
        old
    }

    /// The same for `[K, N, D, E]`.
    fn weights(&self, k: usize, e: usize) -> Vec<usize> {
        let mut old = vec![0; k * self.to.units() * e];
        for k in 0..k {
            self.units(&mut old, k, k, e);
        }
        old
    }

    /// The same for one block `[N, D, E]`, the new one at `target` and the old one at `source`.
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

    /// The same for the tensor of this name.
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

    /// The case with its problem's sizes and layout those of the new shapes. Lengths stay as they
    /// are, except that rows move.
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

    /// The results in the new shapes. `d_r` and `d_b` are those of the whole batch, whatever the
    /// rows.
    pub fn results(&self, results: &Results) -> Results {
        let mut new = Results::default();
        for (name, x) in results.iter() {
            new.push(name, self.positions(name).into_iter().map(|i| x[i]).collect());
        }
        new
    }

    /// Puts `part`, results in the new shapes, where it belongs in `whole`; `d_r` and `d_b` are
    /// added.
    pub fn paste(&self, part: &Results, whole: &mut Results) {
        for (name, part) in part.iter() {
            let whole = whole.get_mut(name);
            for (i, &v) in self.positions(name).into_iter().zip(part) {
                if name == "d_r" || name == "d_b" { whole[i] += v } else { whole[i] = v }
            }
        }
    }
}

/// The length of each row.
pub fn lengths(case: &Case) -> Vec<usize> {
    let all = || vec![case.problem.time; case.problem.batch];
    case.inputs
        .lengths
        .as_ref()
        .map_or_else(all, |lengths| lengths.iter().map(|&n| n as usize).collect())
}
