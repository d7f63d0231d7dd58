//! A call's rows and tasks, and running them.

use rayon::prelude::*;

use flashrnn_core::{Result, Shapes};

use crate::division::Division;
use crate::memory::{Aligned, filled};
use crate::team::{Team, back_and_forth};

/// A row of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its index in the batch.
    pub b: usize,
    /// How many steps it has.
    pub length: usize,
}

/// What lies before a step of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// A reset.
    Zero,
    /// The initial state of the row.
    Initial,
    /// Another step, by its token.
    Token(usize),
}

/// The time axis of a call: where a row's steps lie in the tensors, and where its state is reset.
#[derive(Clone, Copy)]
pub(crate) struct Time<'a> {
    pub shapes: &'a Shapes,
    pub reverse: bool,
    pub resets: Option<&'a [u8]>,
}

impl Time<'_> {
    /// The token of a row's step, counted in processing order.
    #[inline(always)]
    pub fn token(&self, row: Row, step: usize) -> usize {
        self.shapes.token(row.b, if self.reverse { row.length - 1 - step } else { step })
    }

    /// Whether the state is zeroed before a row's step.
    #[inline(always)]
    pub fn reset(&self, row: Row, step: usize) -> bool {
        self.resets.is_some_and(|resets| resets[self.token(row, step)] != 0)
    }

    #[inline(always)]
    pub fn before(&self, row: Row, step: usize) -> Before {
        if self.reset(row, step) {
            Before::Zero
        } else if step == 0 {
            Before::Initial
        } else {
            Before::Token(self.token(row, step - 1))
        }
    }
}

/// The rows of a call, the longest first, so that those still running are always the first so many.
pub(crate) fn sorted_rows(shapes: &Shapes, lengths: Option<&[i32]>) -> Result<Vec<Row>> {
    let mut rows = filled(Row { b: 0, length: shapes.time }, shapes.batch)?;
    for (b, row) in rows.iter_mut().enumerate() {
        row.b = b;
        if let Some(lengths) = lengths {
            row.length = lengths[b] as usize;
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.length));
    Ok(rows)
}

/// How many of the sorted `rows` have the step.
#[inline(always)]
pub(crate) fn active(rows: &[Row], step: usize) -> usize {
    if rows.last().is_some_and(|row| row.length > step) {
        return rows.len();
    }
    rows.partition_point(|row| row.length > step)
}

/// A head and some rows that go through time together, with `D`ata of their own.
pub(crate) struct Task<'a, D> {
    pub head: usize,
    pub rows: &'a [Row],
    pub data: D,
}

impl<'a, D> Task<'a, D> {
    /// A task for each of `tiles` parts of `rows` and each head; tasks of the same rows stand together.
    pub fn all(
        rows: &'a [Row],
        heads: usize,
        tiles: usize,
        mut data: impl FnMut(&[Row]) -> Result<D>,
    ) -> Result<Vec<Self>> {
        let mut tasks = Vec::with_capacity(heads * tiles);
        for tile in 0..tiles {
            let rows = &rows[tile * rows.len() / tiles..(tile + 1) * rows.len() / tiles];
            for head in 0..heads {
                tasks.push(Self { head, rows, data: data(rows)? });
            }
        }
        Ok(tasks)
    }

    /// The same task with other data.
    pub fn with<E>(self, data: E) -> Task<'a, E> {
        Task { head: self.head, rows: self.rows, data }
    }
}

/// Runs `steps(task)` steps of `blocks` blocks of every task, each step after the one before it:
/// `work(task, step, block, scratch)`, with `scratch` elements of room for each thread.
pub(crate) fn run<'a, D: Sync, S: bytemuck::Pod + Send + Sync>(
    tasks: &[Task<'a, D>],
    division: Division,
    blocks: usize,
    scratch: usize,
    steps: impl Fn(&Task<'a, D>) -> usize + Sync,
    work: impl Fn(&Task<'a, D>, usize, usize, &mut [S]) + Sync,
) -> Result<()> {
    let room = || Aligned::<S>::new(scratch);
    // Tasks of the same rows, one step of all of them after the other.
    let alone = |bundle: &[Task<'a, D>], scratch: &mut [S]| {
        let n = bundle.len() * blocks;
        for step in 0..bundle.first().map_or(0, &steps) {
            for i in 0..n {
                let i = back_and_forth(step, i, n);
                work(&bundle[i / blocks], step, i % blocks, scratch);
            }
        }
    };
    let threads = rayon::current_num_threads();
    if division.team > 1 {
        let teams: Vec<Team> =
            tasks.iter().map(|task| Team::new(steps(task), blocks, division.team)).collect();
        // Several teams may work at once, each on every so manieth task.
        let groups = (threads / division.team).clamp(1, tasks.len().max(1));
        let member = |group: usize, me: usize, mut scratch: Aligned<S>| {
            for (task, team) in tasks.iter().zip(&teams).skip(group).step_by(groups) {
                team.join(me, |step, block| work(task, step, block, scratch.as_mut_slice()));
            }
        };
        let rooms = (0..groups * division.team).map(|_| room()).collect::<Result<Vec<_>>>()?;
        rayon::in_place_scope_fifo(|scope| {
            let mut rooms = rooms.into_iter().enumerate();
            let mine = rooms.next();
            for (i, scratch) in rooms {
                let member = &member;
                scope.spawn_fifo(move |_| member(i / division.team, i % division.team, scratch));
            }
            if let Some((_, scratch)) = mine {
                member(0, 0, scratch);
            }
        });
        Ok(())
    } else if threads == 1 || tasks.len() == division.bundle {
        let mut scratch = room()?;
        tasks.chunks(division.bundle).for_each(|bundle| alone(bundle, scratch.as_mut_slice()));
        Ok(())
    } else {
        tasks.par_chunks(division.bundle).with_max_len(1).try_for_each(|bundle| {
            alone(bundle, room()?.as_mut_slice());
            Ok(())
        })
    }
}
