//! The forward pass, and one step of it.

use flashrnn_core::{Element, Forward, Len, Result, Save, Step};

use crate::call::{Layout, Params};
use crate::device::{Wgpu, lock};
use crate::engine::Engine;
use crate::kernel::{Bound, Call, Uniform};
use crate::memory::View;
use crate::plan::WgpuWeights;

/// The tensors of the step kernel.
struct Tensors<'a, T> {
    wx: View<'a, T>,
    h: Option<View<'a, T>>,
    states: Option<View<'a, T>>,
    gates: Option<View<'a, T>>,
    wide: Option<View<'a, f32>>,
}

/// What [`Plan::step`](flashrnn_core::Plan::step) works with, call after call. A bind group is none of it: that would keep the
/// caller's memory too.
pub(crate) struct StepMemory {
    /// The state before and after.
    work: wgpu::Buffer,
    uniform: Uniform,
}

impl Engine {
    pub(crate) fn forward<T: Element, W: Element>(&self, call: Forward<'_, Wgpu, T, W>) -> Result<()> {
        let Forward { wx, weights, s0, lengths, resets, h, states, last, saved } = call;
        let shapes = &self.shapes;
        let state: usize = shapes.state().iter().product();
        let mut layout = Layout::default();
        let mut params = Params {
            has_lengths: lengths.is_some().into(),
            has_resets: resets.is_some().into(),
            lengths_at: layout.add(shapes.batch),
            resets_at: layout.add(shapes.tokens().div_ceil(4)),
            carried_at: layout.add(2 * state),
            ..self.params()
        };
        let work = self.pool.words(&self.device, layout.words)?;
        let mut commands = Call::new(&self.device);
        match s0 {
            Some(s0) => commands.copy_in("s0", s0, &work, params.carried_at)?,
            None => commands.clear(&work, params.carried_at, state),
        }
        if let Some(lengths) = lengths {
            commands.copy_in("lengths", lengths, &work, params.lengths_at)?;
        }
        if let Some(resets) = resets {
            commands.copy_in("resets", resets, &work, params.resets_at)?;
        }
        let saved = saved.as_deref();
        let tensors = Tensors {
            wx,
            h: h.map(|view| view.0),
            states: states.map(|view| view.0),
            gates: saved.filter(|_| self.problem.options.save == Save::Gates).map(|saved| saved.gates.view()),
            // An f32 here: T is f32 or 16 bits.
            wide: saved
                .map(|saved| &saved.wide)
                .filter(|wide| wide.len > 0)
                .map(|wide| View::of(&wide.buffer, 0, wide.len))
                .transpose()?,
        };
        let bound = self.step_tensors(&mut params, weights, &tensors, &work);
        let kernel = self.forward_steps(&params)?;
        self.run_steps(&mut commands, &kernel, params, &bound, shapes.time);
        if let Some(last) = last {
            commands.copy_out(&work, params.carried_at + self.carried_after(shapes.time), last.0);
        }
        commands.submit();
        Ok(())
    }

    pub(crate) fn step<T: Element, W: Element>(&self, call: Step<'_, Wgpu, T, W>) -> Result<()> {
        let state: usize = self.shapes.state().iter().product();
        // One step of each row, batch-major, whatever the problem's T.
        let mut params = Params { time: 1, end_step: 1, time_major: 0, reverse: 0, ..self.params() };
        // Held until the call is enqueued: what another thread does with this memory comes after.
        let mut memory = lock(&self.step_memory);
        let memory = match &mut *memory {
            Some(memory) => memory,
            none => none.insert(StepMemory {
                work: self.device.alloc::<u32>(2 * state)?.buffer,
                uniform: Uniform::new(&self.device, params),
            }),
        };
        let mut commands = Call::new(&self.device);
        commands.copy_in("state", call.state.0, &memory.work, 0)?;
        let h = call.h.map(|view| view.0);
        let tensors = Tensors { wx: call.wx, h, states: None, gates: None, wide: None };
        let bound = self.step_tensors(&mut params, call.weights, &tensors, &memory.work);
        memory.uniform.set(&self.device, params);
        let kernel = self.forward_steps(&params)?;
        commands.run_with(&kernel, &memory.uniform, &bound, self.groups(), 1);
        commands.copy_out(&memory.work, self.carried_after(1), call.state.0);
        commands.submit();
        Ok(())
    }

    /// What the step kernel is bound to, and its parameters.
    fn step_tensors<'a, T: Element>(
        &'a self,
        params: &mut Params,
        weights: &'a WgpuWeights,
        tensors: &Tensors<'a, T>,
        work: &'a wgpu::Buffer,
    ) -> [Bound<'a>; 7] {
        let &Tensors { wx, h, states, gates, wide } = tensors;
        params.has_h = h.is_some().into();
        params.has_states = states.is_some().into();
        params.saves_gates = gates.is_some().into();
        params.saves_wide = wide.is_some().into();
        let wx = Some(wx).filter(|wx| wx.len() > 0);
        [
            Bound::whole(&weights.packed.buffer),
            self.bind(wx, false, 0, &mut params.wx_first),
            Bound::whole(work),
            self.bind(h, true, 0, &mut params.h_first),
            self.bind(states, true, 1, &mut params.states_first),
            self.bind(gates, true, 2, &mut params.gates_first),
            self.bind(wide, true, 3, &mut params.wide_first),
        ]
    }

    /// Where in what is carried the states lie after so many steps: the fused kernel leaves them in place.
    fn carried_after(&self, steps: usize) -> u32 {
        let state: usize = self.shapes.state().iter().product();
        if self.fused.is_some() { 0 } else { (steps % 2 * state) as u32 }
    }
}
