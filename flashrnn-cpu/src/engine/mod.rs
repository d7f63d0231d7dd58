//! What a plan runs, for an element type and an instruction set, behind an interface that hides
//! both. The cell is behind [`Blocks`], so that all this is compiled once and not once a cell.

use std::sync::Mutex;

use flashrnn_core::{Backward, Element, Forward, Options, Problem, Result, SavedMut, Shapes, Step};

use crate::Cpu;
use crate::batched::gather::Steps;
use crate::batched::recompute::{Recompute, RecomputeRoom};
use crate::batched::weight_grad::{Part, WeightGrad, WeightGradRoom};
use crate::cell_kernel::Blocks;
use crate::kernel::backward::{BackwardCall, BackwardPass};
use crate::kernel::forward::{ForwardCall, ForwardData, ForwardPass};
use crate::kernel::packed::Packed;
use crate::kernel::product::{PackedOrder, Panels};
use crate::memory::{Aligned, Memory, Shared, Span, SpanLayout, filled, lock};
use crate::schedule::division::{Division, Work};
use crate::schedule::tasks::{Row, Task, Time, sort_rows};
use crate::schedule::time_loop::{Pass, TimeLoop};
use crate::simd::Vector;
use crate::threads::workers::Workers;

/// Where a backward pass puts the weight gradients.
pub(crate) type Sink<'a, S> = &'a (dyn Fn(Part<'_, S>) + Sync);

/// What a plan runs. The weights' element type plays no part: they are packed wide. The plan has
/// checked the calls.
pub(crate) trait Kernel<T: Element>: Send + Sync {
    /// What the order of packed weights depends on besides their sizes.
    fn order(&self) -> PackedOrder;

    /// Packs R and b.
    fn pack(&self, r: &[T::Wide], b: &[T::Wide]) -> Result<Packed<T::Wide>>;

    /// The bytes of scratch memory that a forward and a backward pass work in.
    fn workspaces(&self) -> [usize; 2];

    /// # Safety
    /// The memory is a workspace of the forward pass, and the call's own.
    unsafe fn forward(&self, call: Forward<'_, Cpu, T>, memory: Memory<'_>);

    /// Computes the gradients, and gives those of the weights to `sink`.
    ///
    /// # Safety
    /// The memory is a workspace of the backward pass, and the call's own.
    unsafe fn backward(
        &self,
        call: Backward<'_, Cpu, T, T>,
        sink: Option<Sink<'_, T::Wide>>,
        memory: Memory<'_>,
    ) -> Result<()>;

    fn step(&self, call: Step<'_, Cpu, T>) -> Result<()>;
}

/// A problem with a cell, divided up for an instruction set.
pub(crate) struct Engine<T: Element, V> {
    cell: Box<dyn Blocks<T>>,
    options: Options,
    shapes: Shapes,
    workers: Workers,
    forward: Panels,
    backward: Panels,
    forward_room: ForwardRoom,
    backward_room: BackwardRoom,
    step_shapes: Shapes,
    /// Rooms of steps that are not under way, so that a step need not allocate.
    step_rooms: Mutex<Vec<StepRoom<T::Wide>>>,
    vector: std::marker::PhantomData<V>,
}

/// Where a forward pass finds its scratch memory.
struct ForwardRoom {
    bytes: usize,
    rows: Span,
    time_loop: TimeLoop,
}

/// Where a backward pass finds its scratch memory. What is before, in and after the time loop
/// shares it.
struct BackwardRoom {
    bytes: usize,
    rows: Span,
    starts: Span,
    d_inner: Span,
    remainders: Span,
    recompute: RecomputeRoom,
    time_loop: TimeLoop,
    weight_grad: WeightGradRoom,
}

/// The memory of a step, which computes one head after the other in it.
struct StepRoom<S> {
    /// The batch, with one step each.
    rows: Vec<Row>,
    state: Aligned<S>,
    h: Aligned<S>,
    scratch: Aligned<S>,
}

impl<T: Element, V: Vector<T> + Send + Sync> Engine<T, V> {
    /// For a machine that has the instruction set of `V`, for which `cell` was compiled.
    pub fn build(
        cell: Box<dyn Blocks<T>>,
        problem: &Problem,
        shapes: &Shapes,
        workers: Workers,
    ) -> Box<dyn Kernel<T>> {
        let forward = Panels::forward::<V>(shapes.recurrent, shapes.head_dim, workers.threads());
        let backward = Panels::backward::<V>(shapes.recurrent, shapes.head_dim);
        Box::new(Self {
            cell,
            options: problem.options,
            forward,
            backward,
            forward_room: Self::forward_room(shapes, &forward, workers.threads()),
            backward_room: Self::backward_room(shapes, [&forward, &backward], workers.threads()),
            workers,
            shapes: shapes.clone(),
            step_shapes: Shapes { time: 1, ..shapes.clone() },
            step_rooms: Mutex::default(),
            vector: std::marker::PhantomData,
        })
    }

    fn forward_room(shapes: &Shapes, panels: &Panels, threads: usize) -> ForwardRoom {
        let mut layout = SpanLayout::default();
        let rows = layout.add::<Row>(shapes.batch);
        let division = Self::division(shapes, panels, threads);
        let time_loop = TimeLoop::new::<ForwardPass<'_, T>, T::Wide>(
            &mut layout,
            shapes,
            panels,
            V::ROWS,
            division,
            threads,
        );
        ForwardRoom { bytes: layout.bytes(), rows, time_loop }
    }

    fn backward_room(
        shapes: &Shapes,
        [forward, backward]: [&Panels; 2],
        threads: usize,
    ) -> BackwardRoom {
        let mut layout = SpanLayout::default();
        let unit_steps = shapes.tokens() * shapes.units();
        let rows = layout.add::<Row>(shapes.batch);
        let starts = layout.add::<usize>(shapes.batch + 1);
        let d_inner = layout.add::<T>(shapes.inner() * unit_steps);
        let remainders =
            layout.add::<T>(if narrow::<T>() { shapes.wide_gates.len() * unit_steps } else { 0 });
        let shared = layout.end();
        let recompute = RecomputeRoom::new::<V>(&mut layout, forward, threads);
        layout.back_to(shared);
        let division = Self::division(shapes, backward, threads);
        let time_loop = TimeLoop::new::<BackwardPass<'_, T>, T::Wide>(
            &mut layout,
            shapes,
            backward,
            V::ROWS,
            division,
            threads,
        );
        layout.back_to(shared);
        let weight_grad = WeightGradRoom::new::<V>(&mut layout, shapes, threads);
        let bytes = layout.bytes();
        BackwardRoom { bytes, rows, starts, d_inner, remainders, recompute, time_loop, weight_grad }
    }

    fn division(shapes: &Shapes, panels: &Panels, threads: usize) -> Division {
        let &Shapes { batch, heads, head_dim, recurrent, .. } = shapes;
        let matrix = recurrent * head_dim * head_dim;
        Division::new(Work {
            threads,
            heads,
            batch,
            blocks: panels.blocks(),
            row_step: matrix / V::LANES,
            matrix: matrix * size_of::<T::Wide>(),
        })
    }

    fn time<'a>(&'a self, resets: Option<&'a [u8]>) -> Time<'a> {
        Time { shapes: &self.shapes, reverse: self.options.reverse, resets }
    }

    /// A row of the batch with its length.
    fn row(&self, lengths: Option<&[i32]>, b: usize) -> Row {
        Row { b, length: lengths.map_or(self.shapes.time, |lengths| lengths[b] as usize) }
    }

    /// R in the order of the backward pass, from that of the forward pass.
    fn transposed<'a>(&self, packed: &'a Packed<T::Wide>) -> Result<&'a [T::Wide]> {
        packed.transposed(|transposed| {
            let (d, head_len) = (self.shapes.head_dim, self.forward.len());
            // The term (gate, unit j) of output `unit` is factor k = `unit` of the forward pass's
            // output (gate, j).
            self.backward.pack(
                &self.workers,
                packed.forward(),
                transposed,
                |head, _, unit, term| {
                    let (gate, j) = (term / d, term % d);
                    let (start, step) = self.forward.place(gate, j / V::LANES);
                    (head * head_len + start + unit * step + j % V::LANES, step)
                },
            );
        })
    }

    fn step_room(&self) -> Result<StepRoom<T::Wide>> {
        let Shapes { batch, states, head_dim, .. } = self.shapes;
        let padded = self.forward.vectors() * self.forward.lanes;
        let mut rows = filled(Row { b: 0, length: 1 }, batch)?;
        rows.iter_mut().enumerate().for_each(|(b, row)| row.b = b);
        Ok(StepRoom {
            rows,
            state: Aligned::new(batch * states * padded)?,
            h: Aligned::new(2 * batch * head_dim)?,
            scratch: Aligned::new(V::ROWS * self.forward.outputs())?,
        })
    }
}

/// Whether tensors of `T` can't hold all that arithmetic gives.
fn narrow<T: Element>() -> bool {
    size_of::<T>() < size_of::<T::Wide>()
}

impl<T: Element, V: Vector<T> + Send + Sync> Kernel<T> for Engine<T, V> {
    fn order(&self) -> PackedOrder {
        self.forward.order()
    }

    fn pack(&self, r: &[T::Wide], b: &[T::Wide]) -> Result<Packed<T::Wide>> {
        let Shapes { heads, head_dim: d, .. } = self.shapes;
        let lens = [heads * self.forward.len(), heads * self.backward.len(), b.len()];
        Packed::new(lens, |forward, bias| {
            // r [Gr, N, D_out, D_in]: a gate's units are rows, apart by D.
            let row = |head, gate, unit, k| (((gate * heads + head) * d + unit) * d + k, d);
            self.forward.pack(&self.workers, r, forward, row);
            bias.copy_from_slice(b);
        })
    }

    fn workspaces(&self) -> [usize; 2] {
        [self.forward_room.bytes, self.backward_room.bytes]
    }

    unsafe fn forward(&self, call: Forward<'_, Cpu, T>, memory: Memory<'_>) {
        let room = &self.forward_room;
        // SAFETY: the only use of this span.
        let rows = unsafe { memory.fill(room.rows, |b| self.row(call.lengths, b)) };
        sort_rows(rows);
        let (gates, wide) = match call.saved {
            Some(SavedMut { gates, wide }) => (Some(gates), Some(wide)),
            None => (None, None),
        };
        let call = ForwardCall {
            time: self.time(call.resets),
            forward_clip: self.options.forward_clip,
            panels: self.forward,
            packed: call.weights.packed().forward(),
            b: call.weights.packed().b(),
            wx: call.wx,
            s0: call.s0,
            h: call.h.map(Shared::new),
            states: call.states.map(Shared::new),
            last: call.last.map(Shared::new),
            gates: gates.filter(|v| !v.is_empty()).map(Shared::new),
            wide: wide.filter(|v| !v.is_empty()).map(Shared::new),
        };
        // SAFETY: the memory's promise is the caller's.
        unsafe {
            let pass = ForwardPass { cell: &*self.cell, call };
            room.time_loop.run(memory, &self.workers, rows, &pass);
        }
    }

    unsafe fn backward(
        &self,
        call: Backward<'_, Cpu, T, T>,
        sink: Option<Sink<'_, T::Wide>>,
        memory: Memory<'_>,
    ) -> Result<()> {
        let (shapes, room) = (&self.shapes, &self.backward_room);
        let packed = call.weights.packed();
        let transposed = self.transposed(packed)?;
        // SAFETY: the only use of each of these spans.
        let (rows, starts, d_inner, remainders) = unsafe {
            let rows = memory.fill(room.rows, |b| self.row(call.lengths, b));
            let (starts, d_inner) = (memory.numbers(room.starts), memory.numbers(room.d_inner));
            (rows, starts, d_inner, memory.numbers(room.remainders))
        };
        sort_rows(rows);
        let rows = &*rows;
        let steps = &Steps::new(rows, starts);
        let (time, states, s0) = (self.time(call.resets), call.states, call.s0);
        let gates = (!call.saved.gates.is_empty()).then_some(call.saved.gates);
        // What T is too narrow for: saved by the forward pass, or recomputed in two parts. Empty
        // where T is wide.
        let wide_states =
            if narrow::<T>() { shapes.wide.len() * shapes.tokens() * shapes.units() } else { 0 };
        let (wide, wide_gates) = call.saved.wide.split_at(wide_states);
        let recomputed = gates.is_none() && !remainders.is_empty();
        if let (None, Some(wx)) = (gates, call.wx) {
            let (d_wx, d_inner) = (Shared::new(&mut *call.d_wx), Shared::new(&mut *d_inner));
            let (panels, packed, b) = (self.forward, packed.forward(), packed.b());
            let remainders = recomputed.then(|| Shared::new(&mut *remainders));
            let recompute = Recompute {
                time,
                panels,
                packed,
                b,
                wx,
                states,
                s0,
                steps,
                d_wx,
                d_inner,
                remainders,
            };
            // SAFETY: an engine is built only for a level that the machine has; nothing else runs
            // yet.
            unsafe { recompute.run::<V>(&self.workers, memory, room.recompute) };
        }
        let backward = BackwardCall {
            time,
            forward_clip: self.options.forward_clip,
            recurrent_grad_clip: self.options.recurrent_grad_clip,
            cut_recurrent_grad: self.options.cut_recurrent_grad,
            panels: self.backward,
            packed: transposed,
            states,
            s0,
            wide: (!wide.is_empty()).then_some(wide),
            wide_gates: (!wide_gates.is_empty()).then_some(wide_gates),
            remainders: recomputed.then_some(&*remainders),
            gates,
            d_states: call.d_states.or(call.d_h),
            d_states_given: if call.d_states.is_some() { shapes.states } else { 1 },
            d_last: call.d_last,
            d_wx: Shared::new(&mut *call.d_wx),
            d_inner: Shared::new(&mut *d_inner),
            d_s0: call.d_s0.map(Shared::new),
        };
        // SAFETY: the memory's promise is the caller's; recomputing is over.
        unsafe {
            let pass = BackwardPass { cell: &*self.cell, call: backward };
            room.time_loop.run(memory, &self.workers, rows, &pass);
        }
        if let Some(sink) = sink {
            let grad =
                WeightGrad { time, states, s0, d_wx: &*call.d_wx, d_inner: &*d_inner, steps };
            // SAFETY: an engine is built only for a level that the machine has; the time loop is
            // over.
            unsafe { grad.run::<V>(&self.workers, memory, room.weight_grad, sink) };
        }
        Ok(())
    }

    fn step(&self, call: Step<'_, Cpu, T>) -> Result<()> {
        let room = lock(&self.step_rooms).pop();
        let mut room = match room {
            Some(room) => room,
            None => self.step_room()?,
        };
        let args = ForwardCall {
            time: Time { shapes: &self.step_shapes, reverse: false, resets: None },
            forward_clip: self.options.forward_clip,
            panels: self.forward,
            packed: call.weights.packed().forward(),
            b: call.weights.packed().b(),
            wx: call.wx,
            s0: None,
            h: call.h.map(Shared::new),
            states: None,
            last: None,
            gates: None,
            wide: None,
        };
        let data = ForwardData::new(
            Shared::new(room.state.as_mut_slice()),
            Shared::new(room.h.as_mut_slice()),
        );
        let mut task = Task { head: 0, rows: &room.rows[..], data };
        let cell = &*self.cell;
        let _mode = self.workers.subnormals.enter();
        for head in 0..self.shapes.heads {
            task.head = head;
            let pass = ForwardPass { cell, call: ForwardCall { s0: Some(&*call.state), ..args } };
            // SAFETY: nothing else uses the room or the outputs.
            unsafe { pass.begin(&task) };
            let last = Some(Shared::new(&mut *call.state));
            let pass = ForwardPass { cell, call: ForwardCall { last, ..args } };
            for block in 0..self.forward.blocks() {
                // SAFETY: as above.
                unsafe { pass.block(&task, 0, block, room.scratch.as_mut_slice()) };
            }
        }
        lock(&self.step_rooms).push(room);
        Ok(())
    }
}
