//! The forward pass, and one step of it.

use flashrnn_core::{Element, Forward, Result, Step};
use flashrnn_gpu::lock;

use crate::backend::Wgpu;
use crate::call::{Params, state};
use crate::engine::Engine;
use crate::kernels::{Bound, Call};
use crate::memory::View;
use crate::passes::pack::Packed;

/// The tensors of the step kernel.
struct Tensors<'a, T: Element> {
    wx: View<'a, T>,
    h: Option<View<'a, T>>,
    states: Option<View<'a, T>>,
    gates: Option<View<'a, T>>,
    wide: Option<View<'a, T::Wide>>,
}

impl Engine {
    /// The regions of a forward pass's scratch memory, in bytes.
    pub(crate) fn forward_regions(&self) -> [usize; 1] {
        [4 * Params::default().lay_out_forward(&self.shapes)]
    }

    pub(crate) fn forward<T: Element>(&self, call: Forward<'_, Wgpu, T>) -> Result<()> {
        let Forward { weights, wx, s0, lengths, resets, h, states, last, saved, workspace } = call;
        let shapes = &self.shapes;
        let mut params = Params {
            has_lengths: lengths.is_some().into(),
            has_resets: resets.is_some().into(),
            ..self.params()
        };
        params.lay_out_forward(shapes);
        let regions = self.forward_regions();
        let scratch = self.scratch(workspace, &regions)?;
        let [work] = scratch.regions(regions);
        let mut commands = Call::new(&self.device);
        if s0.is_none() {
            commands.clear(work, params.carried_at, state(shapes));
        }
        commands.copy_in("s0", s0, work, params.carried_at)?;
        commands.copy_in("lengths", lengths, work, params.lengths_at)?;
        commands.copy_in("resets", resets, work, params.resets_at)?;
        let (gates, wide) = saved.map(|saved| (saved.gates.0, saved.wide.0)).unzip();
        let tensors =
            Tensors { wx, h: h.map(|view| view.0), states: states.map(|view| view.0), gates, wide };
        let bound = self.step_tensors(&mut params, weights.packed(), &tensors, work);
        let kernel = self.forward_steps(&params)?;
        self.run_steps(&mut commands, &kernel, params, &bound, shapes.time);
        if let Some(last) = last {
            commands.copy_out(work, params.carried_at + self.carried_after(shapes.time), last.0);
        }
        commands.submit();
        Ok(())
    }

    pub(crate) fn step<T: Element>(&self, call: Step<'_, Wgpu, T>) -> Result<()> {
        let Step { weights, wx, state: carried, h } = call;
        // One step of each row, batch-major, whatever the problem's T.
        let mut params = Params { time: 1, time_major: 0, reverse: 0, ..self.params() };
        // Held until the call is enqueued: what another thread does with this memory comes after.
        let mut memory = lock(&self.pool.step);
        let memory = match &mut *memory {
            Some(memory) => memory,
            none => none.insert(self.device.memory(4 * (2 * state(&self.shapes) + 1))?),
        };
        let work = Bound::whole(memory);
        let mut commands = Call::new(&self.device);
        commands.copy_in("state", Some(carried.0), work, 0)?;
        let tensors =
            Tensors { wx, h: h.map(|view| view.0), states: None, gates: None, wide: None };
        let bound = self.step_tensors(&mut params, weights.packed(), &tensors, work);
        let kernel = self.forward_steps(&params)?;
        self.run_steps(&mut commands, &kernel, params, &bound, 1);
        commands.copy_out(work, self.carried_after(1), carried.0);
        commands.submit();
        Ok(())
    }

    /// Binds the tensors of the step kernel, and sets its parameters. An empty tensor counts as
    /// absent.
    fn step_tensors<'a, T: Element>(
        &'a self,
        params: &mut Params,
        weights: &'a Packed<T>,
        tensors: &Tensors<'a, T>,
        work: Bound<'a>,
    ) -> [Bound<'a>; 7] {
        let &Tensors { wx, h, states, gates, wide } = tensors;
        params.has_h = h.is_some_and(|h| h.len > 0).into();
        params.has_states = states.is_some_and(|states| states.len > 0).into();
        params.saves_gates = gates.is_some_and(|gates| gates.len > 0).into();
        params.saves_wide = wide.is_some_and(|wide| wide.len > 0).into();
        [
            Bound::whole(&weights.buffer.buffer),
            self.bind(Some(wx), false, 0, &mut params.wx_first),
            work,
            self.bind(h, true, 0, &mut params.h_first),
            self.bind(states, true, 1, &mut params.states_first),
            self.bind(gates, true, 2, &mut params.gates_first),
            self.bind(wide, true, 3, &mut params.wide_first),
        ]
    }

    /// Offset of the current state in the double buffer after `steps` steps. The fused kernel
    /// leaves it in place.
    fn carried_after(&self, steps: usize) -> u32 {
        if self.fused.is_some() { 0 } else { (steps % 2 * state(&self.shapes)) as u32 }
    }
}
