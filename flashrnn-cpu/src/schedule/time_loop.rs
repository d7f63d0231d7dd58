//! The time loop of a pass: its scratch memory, and who of the threads computes what.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytemuck::Pod;
use flashrnn_core::Shapes;

use crate::kernel::product::Panels;
use crate::memory::{ALIGN, Memory, Shared, Span, SpanLayout};
use crate::schedule::division::Division;
use crate::schedule::tasks::{Row, Task};
use crate::schedule::team::{Signal, Team, back_and_forth};
use crate::threads::workers::Workers;

/// What a pass does in its time loop, with numbers of `S`.
pub(crate) trait Pass<S>: Sync {
    /// What a task carries from step to step.
    type Data<'a>: Sync;

    /// A task's data in memory of its own: `[rows, S, vectors · LANES]`, and twice `[rows, depth of
    /// the product]`.
    fn data<'a>(&self, state: Shared<'a, S>, inputs: Shared<'a, S>) -> Self::Data<'a>;

    /// Does what comes before a task's first step.
    ///
    /// # Safety
    /// No other thread uses the task's data or the outputs of its rows and head.
    unsafe fn begin(&self, task: &Task<'_, Self::Data<'_>>);

    /// How many steps a task has.
    fn steps(&self, task: &Task<'_, Self::Data<'_>>) -> usize;

    /// Computes a block of a step, with room for the products.
    ///
    /// # Safety
    /// The block is this thread's alone; the task has begun, and all blocks of the step before are
    /// done.
    unsafe fn block(
        &self,
        task: &Task<'_, Self::Data<'_>>,
        step: usize,
        block: usize,
        scratch: &mut [S],
    );
}

/// A time loop with a size and a division: where its memory lies in a workspace.
pub(crate) struct TimeLoop {
    division: Division,
    heads: usize,
    /// Blocks of units of a head.
    blocks: usize,
    /// How many threads have work, each with scratch memory of its own.
    members: usize,
    tasks: Span,
    teams: Span,
    signals: Span,
    /// What the tasks carry.
    carried: Span,
    scratch: Span,
    /// Elements of a row's state, and of its inputs of a step.
    row_lens: [usize; 2],
    /// Elements of a task's states and inputs, and of a thread's scratch memory: whole cache lines.
    lens: [usize; 3],
}

impl TimeLoop {
    /// Adds the memory of a loop of `pass` to a workspace. A product has up to `rows` rows.
    pub fn new<P: Pass<S>, S: Pod>(
        layout: &mut SpanLayout,
        shapes: &Shapes,
        panels: &Panels,
        rows: usize,
        division: Division,
        threads: usize,
    ) -> Self {
        let tasks = shapes.heads * division.tiles;
        let whole_lines = |len: usize| len.next_multiple_of(ALIGN / size_of::<S>());
        let row_lens = [shapes.states * panels.vectors() * panels.lanes, 2 * panels.depth];
        let [state, inputs] =
            row_lens.map(|len| whole_lines(shapes.batch.div_ceil(division.tiles) * len));
        let scratch = whole_lines(rows * panels.outputs());
        let teams = if division.team > 1 { tasks } else { 0 };
        let members = match teams {
            0 => threads.min(tasks / division.bundle),
            _ => groups(threads, division, tasks) * division.team,
        };
        Self {
            division,
            heads: shapes.heads,
            blocks: panels.blocks(),
            members,
            tasks: layout.add::<Task<'static, P::Data<'static>>>(tasks),
            teams: layout.add::<Team<'static>>(teams),
            signals: layout.add::<Signal>(teams * Team::signals(division.team)),
            carried: layout.add::<S>(tasks.saturating_mul(state + inputs)),
            scratch: layout.add::<S>(members * scratch),
            row_lens,
            lens: [state, inputs, scratch],
        }
    }

    /// Runs all steps of all `rows`, the longest of which come first.
    ///
    /// # Safety
    /// The memory is a workspace of the layout that this loop was added to, and nobody else uses
    /// it; `pass` is the one of [`Self::new`].
    pub unsafe fn run<P: Pass<S>, S: Pod + Send + Sync>(
        &self,
        memory: Memory<'_>,
        workers: &Workers,
        rows: &[Row],
        pass: &P,
    ) {
        let [state, inputs, scratch_len] = self.lens;
        // SAFETY: each span of this loop's own is taken once.
        let (carried, scratch) = unsafe {
            (Shared::new(memory.numbers(self.carried)), Shared::new(memory.numbers(self.scratch)))
        };
        let task = |i: usize| {
            let (tile, tiles) = (i / self.heads, self.division.tiles);
            let rows = &rows[tile * rows.len() / tiles..(tile + 1) * rows.len() / tiles];
            let first = i * (state + inputs);
            let [state_len, inputs_len] = self.row_lens.map(|len| rows.len() * len);
            let data =
                pass.data(carried.part(first, state_len), carried.part(first + state, inputs_len));
            Task { head: i % self.heads, rows, data }
        };
        // SAFETY: as above.
        let tasks = &*unsafe { memory.fill(self.tasks, task) };
        if self.division.team == 1 {
            let next = AtomicUsize::new(0);
            workers.run(self.members, |me| {
                // SAFETY: a member's own.
                let scratch = unsafe { scratch.slice(me * scratch_len, scratch_len) };
                while let Some(bundle) =
                    tasks.chunks(self.division.bundle).nth(next.fetch_add(1, Relaxed))
                {
                    // SAFETY: the bundle is claimed by this thread alone.
                    unsafe { self.alone(pass, bundle, scratch) };
                }
            });
            return;
        }
        // SAFETY: as above.
        let signals = &*unsafe { memory.fill(self.signals, |_| Signal::zero()) };
        let signals_of = |i: usize| {
            &signals[i * Team::signals(self.division.team)..][..Team::signals(self.division.team)]
        };
        // SAFETY: as above.
        let teams = &*unsafe {
            memory
                .fill(self.teams, |i| Team::new(pass.steps(&tasks[i]), self.blocks, signals_of(i)))
        };
        workers.run(1, |_| {
            for task in tasks {
                // SAFETY: nothing else runs yet.
                unsafe { pass.begin(task) };
            }
        });
        // Several teams may work at once, each beginning at a task of its own. Every member joins
        // all teams in the end, so that one alone gets through everything; a team that is done lets
        // nobody wait.
        let groups = groups(workers.threads(), self.division, tasks.len());
        workers.run(self.members, |me| {
            // SAFETY: a member's own.
            let scratch = unsafe { scratch.slice(me * scratch_len, scratch_len) };
            let (group, me) = (me / self.division.team, me % self.division.team);
            for group in (group..groups).chain(0..group) {
                for (task, team) in tasks.iter().zip(teams).skip(group).step_by(groups) {
                    team.join(me, |step, block| {
                        // SAFETY: a team gives a block to one member, after all blocks of the step
                        // before.
                        unsafe { pass.block(task, step, block, scratch) };
                    });
                }
            }
        });
    }

    /// Runs tasks of the same rows, one step of all of them after the other.
    ///
    /// # Safety
    /// No other thread uses the tasks.
    unsafe fn alone<P: Pass<S>, S>(
        &self,
        pass: &P,
        bundle: &[Task<'_, P::Data<'_>>],
        scratch: &mut [S],
    ) {
        for task in bundle {
            // SAFETY: as promised by the caller.
            unsafe { pass.begin(task) };
        }
        let n = bundle.len() * self.blocks;
        for step in 0..bundle.first().map_or(0, |task| pass.steps(task)) {
            for i in 0..n {
                let i = back_and_forth(step, i, n);
                // SAFETY: as promised by the caller; the steps come in order.
                unsafe { pass.block(&bundle[i / self.blocks], step, i % self.blocks, scratch) };
            }
        }
    }
}

/// How many teams work at once.
fn groups(threads: usize, division: Division, tasks: usize) -> usize {
    (threads / division.team).clamp(1, tasks.max(1))
}
