//! What a plan runs, for an element type and an instruction set, behind an interface that hides both. The cell is behind
//! [`Blocks`], so that all this is compiled once and not once a cell.

use std::sync::{Arc, Mutex, OnceLock};

use flashrnn_core::{Backward, Element, Forward, Problem, Result, SavedMut, Shapes, Step};

use crate::Cpu;
use crate::backward::{self, BackwardBlock, BackwardCall, BackwardRoom};
use crate::compiled::Blocks;
use crate::division::{Division, Work};
use crate::forward::{self, ForwardBlock, ForwardCall, ForwardRoom};
use crate::gather::Steps;
use crate::memory::{Aligned, Shared, filled};
use crate::plan::Packed;
use crate::product::{PackedOrder, Panels};
use crate::recompute::Recompute;
use crate::simd::Vector;
use crate::tasks::{self, Row, Task, Time, sorted_rows};
use crate::weight_grad::{Part, WeightGrad};

/// Where a backward pass puts the weight gradients.
pub(crate) type Sink<'a, S> = &'a (dyn Fn(Part<'_, S>) + Sync);

/// What a plan runs. The weights' element type plays no part: they are packed wide.
pub(crate) trait Kernel<T: Element>: Send + Sync {
    fn order(&self) -> PackedOrder;
    fn pack(&self, r: &[T::Wide], b: &[T::Wide]) -> Result<Packed<T::Wide>>;
    fn forward(&self, call: Forward<'_, Cpu, T>) -> Result<()>;
    fn backward(&self, call: Backward<'_, Cpu, T, T>, weight_grads: Option<Sink<'_, T::Wide>>) -> Result<()>;
    fn step(&self, call: Step<'_, Cpu, T>) -> Result<()>;
}

/// A problem with a cell, divided up for an instruction set.
pub(crate) struct Engine<T: Element, V> {
    cell: Box<dyn Blocks<T>>,
    problem: Problem,
    shapes: Shapes,
    forward: Panels,
    backward: Panels,
    step_shapes: Shapes,
    /// Rooms of steps that are not under way, so that a step need not allocate.
    step_rooms: Mutex<Vec<StepRoom<T::Wide>>>,
    vector: std::marker::PhantomData<V>,
}

struct StepRoom<S> {
    /// The batch, with one step each.
    rows: Vec<Row>,
    data: ForwardRoom<S>,
    scratch: Aligned<S>,
}

impl<T: Element, V: Vector<T> + Send + Sync> Engine<T, V> {
    /// For a machine that has the instruction set of `V`, for which `cell` was compiled.
    pub fn build(cell: Box<dyn Blocks<T>>, problem: &Problem, shapes: &Shapes) -> Arc<dyn Kernel<T>> {
        Arc::new(Self {
            cell,
            problem: problem.clone(),
            shapes: shapes.clone(),
            forward: Panels::forward::<V>(shapes.recurrent, shapes.head_dim, rayon::current_num_threads()),
            backward: Panels::backward::<V>(shapes.recurrent, shapes.head_dim),
            step_shapes: Shapes { time: 1, ..shapes.clone() },
            step_rooms: Mutex::default(),
            vector: std::marker::PhantomData,
        })
    }

    fn time<'a>(&'a self, resets: Option<&'a [u8]>) -> Time<'a> {
        Time { shapes: &self.shapes, reverse: self.problem.options.reverse, resets }
    }

    fn check_lengths(&self, lengths: Option<&[i32]>) -> Result<()> {
        lengths.map_or(Ok(()), |lengths| flashrnn_core::backend::check_lengths(lengths, self.shapes.time))
    }

    fn division(&self, blocks: usize) -> Division {
        let Shapes { batch, heads, head_dim, recurrent, .. } = self.shapes;
        let matrix = recurrent * head_dim * head_dim;
        Division::new(Work {
            threads: rayon::current_num_threads(),
            heads,
            batch,
            blocks,
            row_step: matrix / V::LANES,
            matrix: matrix * size_of::<T::Wide>(),
        })
    }

    /// Runs a task's block.
    fn forward_block(
        &self,
        call: &ForwardCall<'_, T, T::Wide>,
        task: &Task<'_, forward::ForwardData<'_, T::Wide>>,
        step: usize,
        block: usize,
        scratch: &mut [T::Wide],
    ) {
        // SAFETY: an engine is built only for a level that the machine has; `tasks::run` gives a block to one thread, after
        // all blocks of the step before.
        unsafe { self.cell.forward(ForwardBlock { call, task, step, block, scratch }) }
    }

    fn scratch(panels: &Panels) -> usize {
        V::ROWS * panels.outputs()
    }
}

impl<T: Element, V: Vector<T> + Send + Sync> Kernel<T> for Engine<T, V> {
    fn order(&self) -> PackedOrder {
        self.forward.order()
    }

    fn pack(&self, r: &[T::Wide], b: &[T::Wide]) -> Result<Packed<T::Wide>> {
        let Shapes { heads, head_dim: d, .. } = self.shapes;
        // r [Gr, N, D_out, D_in]: a gate's units are rows, apart by D.
        let row = |head, gate, unit, k| (((gate * heads + head) * d + unit) * d + k, d);
        let forward = self.forward.pack(heads, r, row)?;
        let mut bias = Aligned::new(b.len())?;
        bias.as_mut_slice().copy_from_slice(b);
        Ok(Packed { forward, backward: OnceLock::new(), b: bias })
    }

    fn forward(&self, call: Forward<'_, Cpu, T>) -> Result<()> {
        self.check_lengths(call.lengths)?;
        let (gates, wide) = match call.saved {
            Some(SavedMut { gates, wide }) => (Some(gates), Some(wide)),
            None => (None, None),
        };
        let args = ForwardCall {
            time: self.time(call.resets),
            forward_clip: self.problem.options.forward_clip,
            panels: self.forward,
            packed: call.weights.packed().forward.as_slice(),
            b: call.weights.packed().b.as_slice(),
            wx: call.wx,
            s0: call.s0,
            h: call.h.map(Shared::new),
            states: call.states.map(Shared::new),
            last: call.last.map(Shared::new),
            gates: gates.filter(|v| !v.is_empty()).map(Shared::new),
            wide: wide.filter(|v| !v.is_empty()).map(Shared::new),
        };
        let rows = sorted_rows(&self.shapes, call.lengths)?;
        let division = self.division(self.forward.blocks());
        let mut rooms = Vec::new();
        let tasks = Task::all(&rows, self.shapes.heads, division.tiles, |rows| {
            rooms.push(ForwardRoom::new(&self.forward, self.shapes.states, rows.len())?);
            Ok(())
        })?;
        let tasks: Vec<_> =
            tasks.into_iter().zip(&mut rooms).map(|(task, room)| task.with(room.share())).collect();
        for task in &tasks {
            // SAFETY: nothing else runs yet.
            unsafe { forward::begin(&args, task) };
        }
        tasks::run(
            &tasks,
            division,
            self.forward.blocks(),
            Self::scratch(&self.forward),
            |task| task.rows.first().map_or(0, |row| row.length),
            |task, step, block, scratch| self.forward_block(&args, task, step, block, scratch),
        )
    }

    fn backward(&self, call: Backward<'_, Cpu, T, T>, weight_grads: Option<Sink<'_, T::Wide>>) -> Result<()> {
        self.check_lengths(call.lengths)?;
        let shapes = &self.shapes;
        let time = self.time(call.resets);
        let rows = sorted_rows(shapes, call.lengths)?;
        let steps = Steps::new(&rows);
        let mut d_inner = filled(T::default(), shapes.tokens() * shapes.inner() * shapes.units())?;
        let gates = (!call.saved.gates.is_empty()).then_some(call.saved.gates);
        // What T is too narrow for: saved by the forward pass, or recomputed in two parts. Empty where T is wide.
        let narrow = size_of::<T>() < size_of::<T::Wide>();
        let step = shapes.tokens() * shapes.units();
        let states_len = if narrow { shapes.wide.len() * step } else { 0 };
        let (wide, saved_gates) = call.saved.wide.split_at(states_len);
        let remainders = if narrow && gates.is_none() { shapes.wide_gates.len() * step } else { 0 };
        let mut remainders = filled(T::default(), remainders)?;
        if let (None, Some(wx)) = (gates, call.wx) {
            let recompute = Recompute {
                time,
                panels: self.forward,
                packed: call.weights.packed().forward.as_slice(),
                b: call.weights.packed().b.as_slice(),
                wx,
                states: call.states,
                s0: call.s0,
                steps: &steps,
                d_wx: Shared::new(&mut *call.d_wx),
                d_inner: Shared::new(&mut d_inner),
                remainders: (!remainders.is_empty()).then(|| Shared::new(&mut remainders)),
            };
            // SAFETY: an engine is built only for a level that the machine has.
            unsafe { recompute.run::<V>()? };
        }
        let packed = call.weights.packed().transposed(|| {
            let (d, head_len) = (shapes.head_dim, self.forward.len());
            // The term (gate, unit j) of output `unit` is factor k = `unit` of the forward pass's output (gate, j).
            self.backward.pack(
                shapes.heads,
                call.weights.packed().forward.as_slice(),
                |head, _, unit, term| {
                    let (gate, j) = (term / d, term % d);
                    let (start, step) = self.forward.place(gate, j / V::LANES);
                    (head * head_len + start + unit * step + j % V::LANES, step)
                },
            )
        })?;
        let args = BackwardCall {
            time,
            forward_clip: self.problem.options.forward_clip,
            recurrent_grad_clip: self.problem.options.recurrent_grad_clip,
            cut_recurrent_grad: self.problem.options.cut_recurrent_grad,
            panels: self.backward,
            packed: packed.as_slice(),
            states: call.states,
            s0: call.s0,
            wide: (!wide.is_empty()).then_some(wide),
            wide_gates: (!saved_gates.is_empty()).then_some(saved_gates),
            remainders: (!remainders.is_empty()).then_some(&remainders),
            gates,
            d_states: call.d_states.or(call.d_h),
            d_states_given: if call.d_states.is_some() { shapes.states } else { 1 },
            d_last: call.d_last,
            d_wx: Shared::new(&mut *call.d_wx),
            d_inner: Shared::new(&mut d_inner),
            d_s0: call.d_s0.map(Shared::new),
        };
        let division = self.division(self.backward.blocks());
        let mut rooms = Vec::new();
        let tasks = Task::all(&rows, shapes.heads, division.tiles, |rows| {
            rooms.push(BackwardRoom::new(&self.backward, shapes.states, rows.len())?);
            Ok(())
        })?;
        let tasks: Vec<_> =
            tasks.into_iter().zip(&mut rooms).map(|(task, room)| task.with(room.share())).collect();
        for task in &tasks {
            // SAFETY: nothing else runs yet.
            unsafe { backward::begin(&args, task) };
        }
        tasks::run(
            &tasks,
            division,
            self.backward.blocks(),
            Self::scratch(&self.backward),
            |task| backward::steps(task, args.d_s0.is_some()),
            |task, iteration, block, scratch| {
                let block = BackwardBlock { call: &args, task, iteration, block, scratch };
                // SAFETY: as in `forward_block`.
                unsafe { self.cell.backward(block) }
            },
        )?;
        if let Some(sink) = weight_grads {
            let (states, s0) = (call.states, call.s0);
            let grad = WeightGrad { time, states, s0, d_wx: &*call.d_wx, d_inner: &d_inner, steps: &steps };
            // SAFETY: an engine is built only for a level that the machine has.
            unsafe { grad.run::<V>(sink)? };
        }
        Ok(())
    }

    fn step(&self, call: Step<'_, Cpu, T>) -> Result<()> {
        let lock = || self.step_rooms.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let room = lock().pop();
        let mut room = match room {
            Some(room) => room,
            None => StepRoom {
                rows: sorted_rows(&self.step_shapes, None)?,
                data: ForwardRoom::new(&self.forward, self.shapes.states, self.shapes.batch)?,
                scratch: Aligned::new(Self::scratch(&self.forward))?,
            },
        };
        let args = ForwardCall {
            time: Time { shapes: &self.step_shapes, reverse: false, resets: None },
            forward_clip: self.problem.options.forward_clip,
            panels: self.forward,
            packed: call.weights.packed().forward.as_slice(),
            b: call.weights.packed().b.as_slice(),
            wx: call.wx,
            s0: None,
            h: call.h.map(Shared::new),
            states: None,
            last: None,
            gates: None,
            wide: None,
        };
        for head in 0..self.shapes.heads {
            let task = Task { head, rows: &room.rows, data: room.data.share() };
            // SAFETY: nothing else uses the room or the outputs; `state` is read here and written below.
            unsafe { forward::begin(&ForwardCall { s0: Some(&*call.state), ..args }, &task) };
            let args = ForwardCall { last: Some(Shared::new(&mut *call.state)), ..args };
            for block in 0..self.forward.blocks() {
                self.forward_block(&args, &task, 0, block, room.scratch.as_mut_slice());
            }
        }
        lock().push(room);
        Ok(())
    }
}
