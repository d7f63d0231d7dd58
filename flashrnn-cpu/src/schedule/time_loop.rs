//! The time loop of a pass: its scratch memory, and the distribution of blocks to threads.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytemuck::Pod;

use super::division::Division;
use super::tasks::{Row, Task};
use super::team::{Signal, Team, back_and_forth};
use crate::memory::{CACHE_LINE, SharedSlice, Span, WorkspaceLayout, WorkspaceView};
use crate::threads::Workers;

/// The computation that a time loop runs, on numbers of type `S`.
pub(crate) trait Pass<S>: Sync {
    /// Prepares a task for its first step.
    ///
    /// # Safety
    /// No other thread uses the task's memory, or the outputs of its rows and head.
    unsafe fn begin(&self, task: &Task<'_, S>);

    /// Returns the number of steps of a task.
    fn steps(&self, task: &Task<'_, S>) -> usize;

    /// Computes a block of units in one step. `scratch` holds the block's products.
    ///
    /// # Safety
    /// No other thread computes this block; the task has begun, and all blocks of the previous step
    /// are done.
    unsafe fn block(&self, task: &Task<'_, S>, step: usize, block: usize, scratch: &mut [S]);
}

/// The sizes that a time loop's memory depends on.
pub(crate) struct LoopSizes {
    pub heads: usize,
    pub batch: usize,
    /// Blocks of units per head.
    pub blocks: usize,
    /// Elements of [`Task::state`] per row.
    pub row_state: usize,
    /// Elements of [`Task::inputs`] per row.
    pub row_inputs: usize,
    /// Elements of a thread's scratch memory.
    pub scratch: usize,
}

/// The time loop of a plan's pass, with the places of its arrays in a workspace.
pub(crate) struct TimeLoop {
    division: Division,
    sizes: LoopSizes,
    /// The number of threads that have work, each with its own scratch memory.
    members: usize,
    tasks: Span,
    teams: Span,
    signals: Span,
    /// The states and inputs of all tasks.
    carried: Span,
    scratch: Span,
    /// Lengths of a task's state, of its inputs, and of a thread's scratch memory, in elements,
    /// rounded up to whole cache lines.
    strides: [usize; 3],
}

impl TimeLoop {
    /// Adds the arrays of a time loop to a workspace.
    pub fn new<S: Pod>(
        layout: &mut WorkspaceLayout,
        sizes: LoopSizes,
        division: Division,
        threads: usize,
    ) -> Self {
        let tasks = sizes.heads * division.tiles;
        let task_rows = sizes.batch.div_ceil(division.tiles);
        let strides = [task_rows * sizes.row_state, task_rows * sizes.row_inputs, sizes.scratch]
            .map(|len| len.next_multiple_of(CACHE_LINE / size_of::<S>()));
        let [state, inputs, scratch] = strides;
        let teams = if division.team > 1 { tasks } else { 0 };
        let members = match teams {
            0 => threads.min(tasks / division.bundle),
            _ => concurrent_teams(threads, division, tasks) * division.team,
        };
        Self {
            division,
            sizes,
            members,
            tasks: layout.add::<Task<'static, S>>(tasks),
            teams: layout.add::<Team<'static>>(teams),
            signals: layout.add::<Signal>(teams * Team::signals(division.team)),
            carried: layout.add::<S>(tasks.saturating_mul(state + inputs)),
            scratch: layout.add::<S>(members * scratch),
            strides,
        }
    }

    /// Runs all steps of all `rows`, which are sorted, longest first.
    ///
    /// # Safety
    /// `memory` is a workspace of the layout that this loop was added to, and nothing else uses it.
    pub unsafe fn run<P: Pass<S>, S: Pod + Send + Sync>(
        &self,
        memory: WorkspaceView<'_>,
        workers: &Workers,
        rows: &[Row],
        pass: &P,
    ) {
        let [state, inputs, scratch] = self.strides;
        let (heads, tiles) = (self.sizes.heads, self.division.tiles);
        // SAFETY: this function takes each of the loop's spans once.
        let carried = SharedSlice::new(unsafe { memory.slice(self.carried) });
        let task = |i: usize| {
            let (head, tile) = (i % heads, i / heads);
            let rows = &rows[tile * rows.len() / tiles..(tile + 1) * rows.len() / tiles];
            let start = i * (state + inputs);
            Task {
                head,
                rows,
                state: carried.part(start, rows.len() * self.sizes.row_state),
                inputs: carried.part(start + state, rows.len() * self.sizes.row_inputs),
            }
        };
        // SAFETY: as above.
        let (tasks, all_scratch) = unsafe {
            (&*memory.fill(self.tasks, task), SharedSlice::new(memory.slice(self.scratch)))
        };
        // SAFETY: each member takes only its own part.
        let scratch_of = |me: usize| unsafe { all_scratch.slice(me * scratch, scratch) };
        if self.division.team == 1 {
            self.run_bundles(workers, tasks, pass, scratch_of);
        } else {
            // SAFETY: guaranteed by the caller.
            unsafe { self.run_teams(memory, workers, tasks, pass, scratch_of) };
        }
    }

    /// Runs each bundle of tasks on one thread.
    fn run_bundles<'m, P: Pass<S>, S: Send + Sync + 'm>(
        &self,
        workers: &Workers,
        tasks: &[Task<'_, S>],
        pass: &P,
        scratch_of: impl Fn(usize) -> &'m mut [S] + Sync,
    ) {
        let next = AtomicUsize::new(0);
        workers.run(self.members, |me| {
            let scratch = scratch_of(me);
            while let Some(bundle) =
                tasks.chunks(self.division.bundle).nth(next.fetch_add(1, Relaxed))
            {
                // SAFETY: this thread alone has taken the bundle.
                unsafe { self.run_bundle(pass, bundle, scratch) };
            }
        });
    }

    /// Runs tasks with the same rows, all of them in each step.
    ///
    /// # Safety
    /// No other thread uses the tasks.
    unsafe fn run_bundle<P: Pass<S>, S>(
        &self,
        pass: &P,
        bundle: &[Task<'_, S>],
        scratch: &mut [S],
    ) {
        for task in bundle {
            // SAFETY: guaranteed by the caller.
            unsafe { pass.begin(task) };
        }
        let blocks = self.sizes.blocks;
        let n = bundle.len() * blocks;
        for step in 0..bundle.first().map_or(0, |task| pass.steps(task)) {
            for i in 0..n {
                let i = back_and_forth(step, i, n);
                // SAFETY: guaranteed by the caller; the steps come in order.
                unsafe { pass.block(&bundle[i / blocks], step, i % blocks, scratch) };
            }
        }
    }

    /// Runs each task on a team of threads.
    ///
    /// # Safety
    /// Same as for [`Self::run`].
    unsafe fn run_teams<'m, P: Pass<S>, S: Send + Sync + 'm>(
        &self,
        memory: WorkspaceView<'_>,
        workers: &Workers,
        tasks: &[Task<'_, S>],
        pass: &P,
        scratch_of: impl Fn(usize) -> &'m mut [S] + Sync,
    ) {
        let team_size = self.division.team;
        // SAFETY: this function takes each of its spans once.
        let signals = &*unsafe { memory.fill(self.signals, |_| Signal::zero()) };
        let signals =
            |i: usize| &signals[i * Team::signals(team_size)..][..Team::signals(team_size)];
        let team = |i: usize| Team::new(pass.steps(&tasks[i]), self.sizes.blocks, signals(i));
        // SAFETY: as above.
        let teams = &*unsafe { memory.fill(self.teams, team) };
        workers.run(1, |_| {
            for task in tasks {
                // SAFETY: nothing else runs yet.
                unsafe { pass.begin(task) };
            }
        });
        // Several teams may work at once, each starting with a different task. Eventually every
        // member joins every team, so a single member could complete everything alone. Joining a
        // finished team returns at once.
        let concurrent = concurrent_teams(workers.threads(), self.division, tasks.len());
        workers.run(self.members, |me| {
            let scratch = scratch_of(me);
            let (first, me) = (me / team_size, me % team_size);
            for start in (first..concurrent).chain(0..first) {
                for (task, team) in tasks.iter().zip(teams).skip(start).step_by(concurrent) {
                    team.join(me, |step, block| {
                        // SAFETY: a team assigns a block to one member, after all blocks of the
                        // previous step.
                        unsafe { pass.block(task, step, block, scratch) };
                    });
                }
            }
        });
    }
}

/// Returns the number of teams that work at once.
fn concurrent_teams(threads: usize, division: Division, tasks: usize) -> usize {
    (threads / division.team).clamp(1, tasks.max(1))
}
