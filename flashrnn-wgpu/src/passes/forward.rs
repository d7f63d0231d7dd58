//! The forward pass, and a single step.

use flashrnn_core::{Element, Forward, Result, Step};
use flashrnn_gpu::lock;

use crate::backend::Wgpu;
use crate::call::Params;
use crate::engine::Engine;
use crate::kernels::recorder::Recorder;
use crate::layout::state_len;
use crate::memory::View;
use crate::memory::binding::Binding;
use crate::packed::Packed;
use crate::programs::tensors::ForwardTensors;

/// The caller's tensors in a forward pass or a step.
struct Views<'a, T: Element> {
    wx: View<'a, T>,
    h: Option<View<'a, T>>,
    states: Option<View<'a, T>>,
    gates: Option<View<'a, T>>,
    wide: Option<View<'a, T::Wide>>,
}

impl Engine {
    /// Returns the regions of a forward pass's scratch memory, in bytes.
    pub(crate) fn forward_regions(&self) -> [usize; 1] {
        [4 * Params::default().lay_out_forward(&self.shapes)]
    }

    /// Enqueues a forward pass.
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
        let mut recorder = Recorder::new(&self.wgpu.kernels);
        if s0.is_none() {
            recorder.clear(work, params.state_at, state_len(shapes));
        }
        recorder.copy_in("s0", s0, work, params.state_at)?;
        recorder.copy_in("lengths", lengths, work, params.lengths_at)?;
        recorder.copy_in("resets", resets, work, params.resets_at)?;
        let (gates, wide) = saved.map(|saved| (saved.gates.0, saved.wide.0)).unzip();
        let views =
            Views { wx, h: h.map(|view| view.0), states: states.map(|view| view.0), gates, wide };
        self.forward_steps(&mut recorder, params, weights.packed(), &views, work, shapes.time)?;
        if let Some(last) = last {
            let at = params.state_at + self.state_offset_after(shapes.time);
            recorder.copy_out(work, at, last.0);
        }
        recorder.submit();
        Ok(())
    }

    /// Enqueues one step of the forward pass.
    pub(crate) fn step<T: Element>(&self, call: Step<'_, Wgpu, T>) -> Result<()> {
        let Step { weights, wx, state, h } = call;
        // One step of each row, batch-major, whatever the problem's T.
        let params = Params { time: 1, time_major: 0, reverse: 0, ..self.params() };
        // Locked until the call is enqueued, so that calls of other threads use the memory later.
        let mut memory = lock(&self.pool.step);
        let memory = match &mut *memory {
            Some(memory) => memory,
            none => none.insert(self.device().memory(4 * (2 * state_len(&self.shapes) + 1))?),
        };
        let work = Binding::whole(memory);
        let mut recorder = Recorder::new(&self.wgpu.kernels);
        recorder.copy_in("state", Some(state.0), work, 0)?;
        let views = Views { wx, h: h.map(|view| view.0), states: None, gates: None, wide: None };
        self.forward_steps(&mut recorder, params, weights.packed(), &views, work, 1)?;
        recorder.copy_out(work, self.state_offset_after(1), state.0);
        recorder.submit();
        Ok(())
    }

    /// Records the kernels of `steps` time steps. An empty tensor counts as absent.
    fn forward_steps<T: Element>(
        &self,
        recorder: &mut Recorder<'_>,
        mut params: Params,
        weights: &Packed<T>,
        views: &Views<'_, T>,
        work: Binding<'_>,
        steps: usize,
    ) -> Result<()> {
        let &Views { wx, h, states, gates, wide } = views;
        params.has_h = h.is_some_and(|h| h.len > 0).into();
        params.has_states = states.is_some_and(|states| states.len > 0).into();
        params.saves_gates = gates.is_some_and(|gates| gates.len > 0).into();
        params.saves_wide = wide.is_some_and(|wide| wide.len > 0).into();
        let tensors = ForwardTensors {
            weights: Binding::whole(&weights.buffer.buffer),
            wx: self.bind(Some(wx), false, 0, &mut params.wx_first),
            work,
            h: self.bind(h, true, 0, &mut params.h_first),
            states: self.bind(states, true, 1, &mut params.states_first),
            gates: self.bind(gates, true, 2, &mut params.gates_first),
            wide: self.bind(wide, true, 3, &mut params.wide_first),
        };
        let kernel = self.forward_kernel(&params)?;
        self.run_steps(recorder, &kernel, params, tensors, steps);
        Ok(())
    }

    /// Returns the offset of the current state in the double buffer after `steps` steps. The fused
    /// kernel updates the state in place.
    fn state_offset_after(&self, steps: usize) -> u32 {
        if self.fused.is_some() { 0 } else { (steps % 2 * state_len(&self.shapes)) as u32 }
    }
}
