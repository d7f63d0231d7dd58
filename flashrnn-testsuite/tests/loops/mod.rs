//! A backend that runs the f64 reference and rounds its results to T. It can be given a fault.

use std::sync::{Arc, Mutex};

use flashrnn_core::reference::{self, Gradients, Inputs, OutputGradients, Outputs};
use flashrnn_core::{
    Backend, Backward, Cell, Dtype, Element, Forward, Info, Plan, Problem, Result, Save, Saved,
    Shapes, Step, Weights, WeightsLayout, Workspace, backend::check_lengths,
};
use flashrnn_testsuite::case::range;

/// A fault to inject into the backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    IgnoreS0,
    IgnoreResets,
    IgnoreReverse,
    IgnoreForwardClip,
    IgnoreGradClip,
    IgnoreCut,
    IgnoreDLast,
    ForgetToWrite,
    OverwriteInsteadOfAdding,
    SavedInThePlan,
    StepRoundsTheState,
    TransposeR,
    ReadPadding,
    RoundTheWeightGradient,
    AcceptWrongLengths,
    AcceptAnyWeights,
    ReadTheWorkspace,
    SkipAnEmptyBatch,
    OtherBits,
    OverflowStates,
}

/// The reference behind the backend interface.
#[derive(Clone)]
pub struct Loops(pub Fault);

pub struct LoopsPlan {
    problem: Problem,
    shapes: Shapes,
    cell: Arc<dyn Run>,
    fault: Fault,
    layout: Arc<WeightsLayout<()>>,
    /// The last call's input, kept for [`Fault::SavedInThePlan`].
    wx: Mutex<Vec<f64>>,
}

pub struct LoopsWeights {
    r: Vec<f64>,
    b: Vec<f64>,
}

trait Run: Send + Sync {
    fn forward(&self, problem: &Problem, x: &Inputs) -> Result<Outputs>;
    fn backward(
        &self,
        problem: &Problem,
        x: &Inputs,
        out: &Outputs,
        d: &OutputGradients,
    ) -> Result<Gradients>;
}

struct Erased<C>(C);

impl<C: Cell> Run for Erased<C> {
    fn forward(&self, problem: &Problem, x: &Inputs) -> Result<Outputs> {
        reference::forward(&self.0, problem, x)
    }
    fn backward(
        &self,
        problem: &Problem,
        x: &Inputs,
        out: &Outputs,
        d: &OutputGradients,
    ) -> Result<Gradients> {
        reference::backward(&self.0, problem, x, out, d)
    }
}

fn read<P: Element>(x: &[P]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

impl Backend for Loops {
    type Buffer<P: bytemuck::Pod + Send + Sync> = Vec<P>;
    type View<'a, P: bytemuck::Pod + Send + Sync> = &'a [P];
    type ViewMut<'a, P: bytemuck::Pod + Send + Sync> = &'a mut [P];
    type Packed<T: Element> = LoopsWeights;
    type PackedOrder = ();
    type Plan<T: Element, W: Element> = LoopsPlan;

    fn info(&self) -> Info {
        let dtypes = vec![Dtype::F32, Dtype::F64, Dtype::F16, Dtype::Bf16];
        Info { name: "loops", device: "this machine".into(), dtypes }
    }
    fn alloc<P: bytemuck::Pod + Send + Sync>(&self, len: usize) -> Result<Vec<P>> {
        Ok(vec![P::zeroed(); len])
    }
    fn upload<P: bytemuck::Pod + Send + Sync>(&self, data: &[P]) -> Result<Vec<P>> {
        Ok(data.to_vec())
    }
    fn download<P: bytemuck::Pod + Send + Sync>(&self, view: &[P]) -> Result<Vec<P>> {
        Ok(view.to_vec())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn trim(&self) -> Result<()> {
        Ok(())
    }
    fn view<'a, P: bytemuck::Pod + Send + Sync>(&self, buffer: &'a Vec<P>) -> &'a [P] {
        buffer
    }
    fn view_mut<'a, P: bytemuck::Pod + Send + Sync>(&self, buffer: &'a mut Vec<P>) -> &'a mut [P] {
        buffer
    }
    fn plan<T: Element, W: Element, C: Cell>(
        &self,
        cell: &C,
        problem: &Problem,
    ) -> Result<LoopsPlan> {
        let shapes = problem.shapes::<C>()?;
        let layout = match self.0 {
            Fault::AcceptAnyWeights => {
                WeightsLayout { recurrent: 0, gates: 0, heads: 0, head_dim: 0, order: () }
            }
            _ => shapes.weights_layout(()),
        };
        Ok(LoopsPlan {
            problem: problem.clone(),
            shapes,
            layout: Arc::new(layout),
            cell: Arc::new(Erased(cell.clone())),
            fault: self.0,
            wx: Mutex::default(),
        })
    }
}

impl LoopsPlan {
    /// Writes `values`, subject to the fault.
    fn write<P: Element>(&self, out: &mut [P], values: &[f64]) {
        for (i, (out, &v)) in out.iter_mut().zip(values).enumerate() {
            match self.fault {
                Fault::ForgetToWrite if i == 5 => {}
                Fault::OtherBits => *out = P::from_f64(v * (1.0 + 2.0 * P::ROUNDOFF)),
                _ => *out = P::from_f64(v),
            }
        }
    }

    /// Returns the bound at which stored states saturate.
    fn range<T: Element>(&self) -> Option<f64> {
        range::<T>().filter(|_| self.fault != Fault::OverflowStates)
    }

    /// Returns the problem and the inputs of a call, changed by the fault.
    fn apply_fault(&self, mut x: Inputs) -> Result<(Problem, Inputs)> {
        let mut problem = self.problem.clone();
        if let Some(lengths) = &x.lengths
            && self.fault != Fault::AcceptWrongLengths
        {
            check_lengths(lengths, self.shapes.time)?;
        }
        match self.fault {
            Fault::IgnoreS0 => x.s0 = None,
            Fault::IgnoreResets => x.resets = None,
            Fault::IgnoreReverse => problem.options.reverse = false,
            Fault::IgnoreForwardClip => problem.options.forward_clip = None,
            Fault::IgnoreGradClip => problem.options.recurrent_grad_clip = None,
            Fault::IgnoreCut => problem.options.cut_recurrent_grad = false,
            Fault::AcceptWrongLengths => {
                let time = self.shapes.time as i32;
                x.lengths.iter_mut().flatten().for_each(|n| *n = (*n).clamp(0, time));
            }
            Fault::TransposeR => {
                let d = self.shapes.head_dim;
                let at = |i: usize| i / (d * d) * d * d + i % d * d + i / d % d;
                x.r = (0..x.r.len()).map(|i| x.r[at(i)]).collect();
            }
            _ => {}
        }
        Ok((problem, x))
    }
}

impl<T: Element, W: Element> Plan<T, W> for LoopsPlan {
    type Backend = Loops;

    fn problem(&self) -> &Problem {
        &self.problem
    }
    fn shapes(&self) -> &Shapes {
        &self.shapes
    }
    fn weights_layout(&self) -> &Arc<WeightsLayout<()>> {
        &self.layout
    }
    fn pack(&self, r: &[W], b: &[W]) -> Result<Weights<Loops, T>> {
        Shapes::check("r", r.len(), &self.shapes.r())?;
        Shapes::check("b", b.len(), &self.shapes.b())?;
        Ok(Weights::new(self.layout.clone(), LoopsWeights { r: read(r), b: read(b) }))
    }
    fn saved(&self) -> Result<Saved<Loops, T>> {
        Saved::new(&Loops(self.fault), &self.shapes, self.problem.options.save)
    }

    fn forward_workspace(&self) -> Workspace {
        Workspace { bytes: 3, align: 1 }
    }
    fn backward_workspace(&self) -> Workspace {
        Workspace { bytes: 3, align: 1 }
    }

    fn forward(&self, call: Forward<'_, Loops, T>) -> Result<()> {
        call.check::<W>(self)?;
        let (problem, x) = self.apply_fault(Inputs {
            wx: read(call.wx),
            r: call.weights.packed().r.clone(),
            b: call.weights.packed().b.clone(),
            s0: call.s0.map(read),
            lengths: call.lengths.map(<[_]>::to_vec),
            resets: call.resets.map(<[_]>::to_vec),
            range: self.range::<T>(),
        })?;
        // With Save::Gates, wx is saved in place of the gates, which are at least as large, and the
        // backward pass reruns the reference.
        if let Some(saved) = call.saved
            && problem.options.save == Save::Gates
        {
            saved.gates[..call.wx.len()].copy_from_slice(call.wx);
        }
        if let Ok(mut wx) = self.wx.lock() {
            *wx = x.wx.clone();
        }
        let mut out = self.cell.forward(&problem, &x)?;
        if self.fault == Fault::ReadPadding && x.wx.iter().any(|v| v.is_nan()) {
            out.last.iter_mut().for_each(|v| *v *= 1.0 + 1e-3);
        }
        call.h.into_iter().for_each(|h| self.write(h, &out.states));
        call.states.into_iter().for_each(|states| self.write(states, &out.states));
        call.last.into_iter().for_each(|last| self.write(last, &out.last));
        Ok(())
    }

    fn backward(&self, call: Backward<'_, Loops, T, W>) -> Result<()> {
        call.check(self)?;
        let workspace_counts = self.fault == Fault::ReadTheWorkspace && call.workspace.is_some();
        let mut wx = call.wx.map_or_else(|| read(&call.saved.gates[..call.d_wx.len()]), read);
        if let Ok(kept) = self.wx.lock()
            && self.fault == Fault::SavedInThePlan
        {
            wx.clone_from(&kept);
        }
        let (problem, x) = self.apply_fault(Inputs {
            wx,
            r: call.weights.packed().r.clone(),
            b: call.weights.packed().b.clone(),
            s0: call.s0.map(read),
            lengths: call.lengths.map(<[_]>::to_vec),
            resets: call.resets.map(<[_]>::to_vec),
            range: self.range::<T>(),
        })?;
        let out = self.cell.forward(&problem, &x)?;
        let d_h = call.d_h.map(|d_h| {
            let mut d = read(d_h);
            d.resize(self.shapes.states().iter().product(), 0.0);
            d
        });
        let d_last = call.d_last.map(read).filter(|_| self.fault != Fault::IgnoreDLast);
        let d = OutputGradients { d_states: call.d_states.map(read).or(d_h), d_last };
        let mut grads = self.cell.backward(&problem, &x, &out, &d)?;
        if workspace_counts {
            grads.d_wx.iter_mut().for_each(|v| *v *= 1.5);
        }
        if self.fault == Fault::SkipAnEmptyBatch && problem.batch == 0 {
            return Ok(());
        }
        self.write(call.d_wx, &grads.d_wx);
        for (target, values) in [(call.d_r, &mut grads.d_r), (call.d_b, &mut grads.d_b)] {
            let Some(target) = target else { continue };
            for (v, old) in values.iter_mut().zip(&*target) {
                if call.accumulate && self.fault != Fault::OverwriteInsteadOfAdding {
                    *v += old.to_f64();
                }
                if self.fault == Fault::RoundTheWeightGradient {
                    *v = T::from_f64(*v).to_f64();
                }
            }
            self.write(target, values);
        }
        call.d_s0.into_iter().for_each(|d_s0| self.write(d_s0, &grads.d_s0));
        Ok(())
    }

    fn step(&self, call: Step<'_, Loops, T>) -> Result<()> {
        call.check::<W>(self)?;
        let one = Problem { time: 1, ..self.problem.clone() };
        let x = Inputs {
            wx: read(call.wx),
            r: call.weights.packed().r.clone(),
            b: call.weights.packed().b.clone(),
            s0: Some(read(call.state)),
            range: self.range::<T>(),
            ..Inputs::default()
        };
        let mut out = self.cell.forward(&one, &x)?;
        if self.fault == Fault::StepRoundsTheState {
            out.last.iter_mut().for_each(|v| *v = flashrnn_core::bf16::from_f64(*v).to_f64());
        }
        self.write(call.state, &out.last);
        call.h.into_iter().for_each(|h| self.write(h, &out.states));
        Ok(())
    }
}
