//! The forward pass, and one step of it.

use flashrnn_core::{Element, Forward, Len, Result, Save, Step};

use crate::call::{Layout, Params};
use crate::device::Wgpu;
use crate::kernel::{Bound, Call};
use crate::memory::View;
use crate::plan::{Engine, WgpuWeights};

/// The tensors of the step kernel.
struct Tensors<'a, T> {
    wx: View<'a, T>,
    h: Option<View<'a, T>>,
    states: Option<View<'a, T>>,
    gates: Option<View<'a, T>>,
    wide: Option<View<'a, f32>>,
}

impl Engine {
    pub(crate) fn forward<T: Element, W: Element>(&self, call: Forward<'_, Wgpu, T, W>) -> Result<()> {
        let Forward { wx, weights, s0, lengths, resets, h, states, last, saved } = call;
        let shapes = &self.shapes;
        let state: usize = shapes.state().iter().product();
        let mut layout = Layout::default();
        let params = Params {
            has_lengths: lengths.is_some().into(),
            has_resets: resets.is_some().into(),
            lengths_at: layout.add(shapes.batch),
            resets_at: layout.add(shapes.tokens().div_ceil(4)),
            carried_at: layout.add(2 * state),
            ..self.params()
        };
        let work = self.device.alloc::<u32>(layout.words)?.buffer;
        let mut commands = Call::new(&self.device);
        if let Some(s0) = s0 {
            commands.copy_in("s0", s0, &work, params.carried_at)?;
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
            gates: saved.filter(|_| self.problem.save == Save::Gates).map(|saved| saved.gates.view()),
            // An f32 here: T is f32 or 16 bits.
            wide: saved
                .map(|saved| &saved.wide)
                .filter(|wide| wide.len > 0)
                .map(|wide| View::of(&wide.buffer, 0, wide.len))
                .transpose()?,
        };
        self.steps(&mut commands, params, weights, tensors, &work, shapes.time)?;
        if let Some(last) = last {
            commands.copy_out(&work, params.carried_at + self.carried_after(shapes.time), last.0);
        }
        commands.submit();
        Ok(())
    }

    pub(crate) fn step<T: Element, W: Element>(&self, call: Step<'_, Wgpu, T, W>) -> Result<()> {
        let state: usize = self.shapes.state().iter().product();
        // One step of each row, batch-major, whatever the problem's T.
        let params = Params { time: 1, time_major: 0, reverse: 0, ..self.params() };
        let work = self.device.alloc::<u32>(2 * state)?.buffer;
        let mut commands = Call::new(&self.device);
        commands.copy_in("state", call.state.0, &work, 0)?;
        let h = call.h.map(|view| view.0);
        let tensors = Tensors { wx: call.wx, h, states: None, gates: None, wide: None };
        self.steps(&mut commands, params, call.weights, tensors, &work, 1)?;
        commands.copy_out(&work, self.carried_after(1), call.state.0);
        commands.submit();
        Ok(())
    }

    fn steps<T: Element>(
        &self,
        commands: &mut Call<'_>,
        mut params: Params,
        weights: &WgpuWeights,
        tensors: Tensors<'_, T>,
        work: &wgpu::Buffer,
        steps: usize,
    ) -> Result<()> {
        let Tensors { wx, h, states, gates, wide } = tensors;
        params.has_h = h.is_some().into();
        params.has_states = states.is_some().into();
        params.saves_gates = gates.is_some().into();
        params.saves_wide = wide.is_some().into();
        let wx = Some(wx).filter(|wx| wx.len() > 0);
        let bound = [
            Bound::whole(&weights.packed.buffer),
            self.bind(wx, false, 0, &mut params.wx_first),
            Bound::whole(work),
            self.bind(h, true, 0, &mut params.h_first),
            self.bind(states, true, 1, &mut params.states_first),
            self.bind(gates, true, 2, &mut params.gates_first),
            self.bind(wide, true, 3, &mut params.wide_first),
        ];
        let dispatches = self.dispatches(steps);
        commands.run_steps(&self.forward_steps, &params, &bound, self.groups(), dispatches);
        Ok(())
    }

    /// Where in what is carried the states lie after so many steps: the fused kernel leaves them in place.
    fn carried_after(&self, steps: usize) -> u32 {
        let state: usize = self.shapes.state().iter().product();
        if self.fused.is_some() { 0 } else { (steps % 2 * state) as u32 }
    }
}
