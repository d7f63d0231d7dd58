//! Head dimensions that are not a multiple of 8, and tensors that start at any element. The fused
//! kernels copy such rows in words of 8 or 4 bytes, or from the middle of a word.

use std::fmt::Debug;
use std::ops::Range;
use std::thread;

use flashrnn_core::{
    Backend, Backward, Cell, Element, Elman, Forward, Gru, Layout, Lstm, Options, Plan, Problem,
    Result, Save, SavedMut, SavedRef, Slstm, bf16, f16,
};
use flashrnn_cuda::{Buffer, Cuda, Family};
use flashrnn_testsuite::random::Random;
use flashrnn_testsuite::{Case, Results, Tensors, errors, run};

use super::cuda;

#[test]
fn every_head_dimension_is_as_exact_as_multiples_of_8() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let cuda = cuda.with_family(Family::Fused);
    fn check<C: Cell, T: Element>(cuda: &Cuda, cell: &C, failed: &mut Vec<String>) -> Result<()> {
        // The conformance suite's bound for 16-bit tensors, and one that detects mistakes in f32.
        let allowed = if size_of::<T>() == 4 { 2e-5 } else { 1.5e-2 };
        // Rows aligned to 2, 4 and 8 bytes, in one block and in clusters whose last block has few
        // units, down to 1. From D = 257, LSTM has a single IO warp.
        let dims: &[(usize, usize)] = if size_of::<T>() == 4 {
            &[(5, 33), (3, 50), (2, 97)]
        } else {
            &[(9, 33), (5, 50), (40, 51), (5, 100), (2, 149), (3, 257), (1, 383)]
        };
        for &(batch, head_dim) in dims {
            // GRU has no fused forward kernel for larger heads.
            if C::NAME == "gru" && head_dim > 380 {
                continue;
            }
            for (layout, reverse, tensors) in [
                (Layout::BatchMajor, false, Tensors::PLAIN),
                (
                    Layout::TimeMajor,
                    true,
                    Tensors { d_states: false, d_last: true, ..Tensors::ALL },
                ),
            ] {
                // sLSTM's last state is discontinuous.
                let tensors = Tensors { d_last: tensors.d_last && C::NAME != "slstm", ..tensors };
                let clip = tensors.lengths.then_some(0.4);
                for heads in [1, 3] {
                    let problem = Problem::new(batch, 20, heads, head_dim);
                    let options = Options {
                        layout,
                        reverse,
                        recurrent_grad_clip: clip,
                        ..Options::default()
                    };
                    let problem = problem.with(options);
                    let case = Case::random::<C, T, T>(cell, &problem, tensors, 1)?;
                    let got = run::<_, C, T, T>(cuda, cell, &case)?;
                    for (tensor, error) in errors(&got, &Results::reference(cell, &case)?) {
                        if error.is_nan() || error > allowed {
                            let (name, dtype) = (C::NAME, T::DTYPE);
                            failed.push(format!(
                                "{name} {dtype} {batch}x{heads}x{head_dim} {tensor} {error:.1e}"
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }
    fn types<C: Cell>(cuda: &Cuda, cell: &C, failed: &mut Vec<String>) -> Result<()> {
        check::<C, bf16>(cuda, cell, failed)?;
        check::<C, f32>(cuda, cell, failed)
    }
    let mut failed = Vec::new();
    types(&cuda, &Elman, &mut failed)?;
    types(&cuda, &Gru, &mut failed)?;
    types(&cuda, &Lstm, &mut failed)?;
    types(&cuda, &Slstm, &mut failed)?;
    check::<_, f16>(&cuda, &Lstm, &mut failed)?;
    assert!(failed.is_empty(), "{failed:#?}");
    Ok(())
}

/// Number of elements before and after each tensor that no kernel may write, more than a word.
const GUARD: usize = 24;

/// The tensors that either pass writes.
#[derive(PartialEq)]
struct Written<T> {
    h: Vec<T>,
    states: Vec<T>,
    d_wx: Vec<T>,
}

/// Places tensors `first` elements after the start of a buffer, with [`GUARD`] elements after them.
#[derive(Clone, Copy)]
struct Guarded<'a> {
    first: usize,
    /// The problem, for messages.
    problem: &'a Problem,
}

impl Guarded<'_> {
    /// Uploads an input, with NaN before and after it.
    fn input<T: Element>(self, cuda: &Cuda, values: Vec<T>) -> Result<Buffer<T>> {
        let nan = [T::from_f64(f64::NAN)];
        cuda.upload(&[nan.repeat(self.first), values, nan.repeat(GUARD)].concat())
    }

    /// Allocates an output of `len` elements, all poisoned.
    fn output<T: Element>(self, cuda: &Cuda, len: usize) -> Result<Buffer<T>> {
        cuda.upload(&vec![poison::<T>(); self.first + len + GUARD])
    }

    /// Returns the range of a tensor of `len` elements in its buffer.
    fn range(self, len: usize) -> Range<usize> {
        self.first..self.first + len
    }

    /// Downloads an output. Checks that all of it was written, and nothing before or after it.
    fn download<T: Element + PartialEq>(
        self,
        cuda: &Cuda,
        (name, len): (&str, usize),
        buffer: &Buffer<T>,
    ) -> Result<Vec<T>> {
        let all = cuda.download(buffer.view())?;
        let range = self.range(len);
        for (i, v) in all.iter().enumerate() {
            let poisoned = *v == poison();
            assert!(
                poisoned != range.contains(&i),
                "{name} in {range:?} of {:?}: element {i} is {}",
                self.problem,
                if poisoned { "not written" } else { "written" }
            );
        }
        Ok(all[range].to_vec())
    }
}

/// Returns a number that no pass computes.
fn poison<T: Element>() -> T {
    T::from_f64(-12345.0)
}

/// Runs both passes on tensors that start `GUARD + offset` elements after the start of their
/// buffers.
fn passes<C: Cell, T: Element + PartialEq + Debug>(
    cuda: &Cuda,
    cell: &C,
    problem: &Problem,
    ragged: bool,
    offset: usize,
) -> Result<Written<T>> {
    let shapes = problem.shapes::<C>()?;
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let mut random = Random::new(7);
    let mut values = |len: usize, deviation: f64| -> Vec<T> {
        random.normals(len, deviation).into_iter().map(T::from_f64).collect()
    };
    let guarded = Guarded { first: GUARD + offset, problem };
    let (h_len, states_len, wx_len) =
        (size(&shapes.h()), size(&shapes.states()), size(&shapes.wx()));
    let (h_at, states_at, wx_at) =
        (guarded.range(h_len), guarded.range(states_len), guarded.range(wx_len));
    let r = cuda.upload(&values(size(&shapes.r()), 0.1))?;
    let b = cuda.upload(&values(size(&shapes.b()), 1.0))?;
    let wx = guarded.input(cuda, values(wx_len, 1.0))?;
    let d_states = guarded.input(cuda, values(states_len, 1.0))?;
    let lengths: Vec<i32> =
        (0..shapes.batch).map(|row| (shapes.time - row % shapes.time) as i32).collect();
    let lengths = cuda.upload(&lengths)?;
    let mut h = guarded.output(cuda, h_len)?;
    let mut states = guarded.output(cuda, states_len)?;
    let mut d_wx = guarded.output(cuda, wx_len)?;

    let plan = cuda.plan::<T, T, _>(cell, problem)?;
    let weights = plan.pack(r.view(), b.view())?;
    // Saved gates may start at any element too.
    let [gates_len, wide_len] = shapes.saved::<T>(problem.options.save);
    let gates_at = guarded.range(gates_len);
    let mut gates = guarded.output(cuda, gates_len)?;
    let mut wide = cuda.alloc::<T::Wide>(wide_len)?;
    let wx_view = wx.view().slice(wx_at.clone())?;
    plan.forward(Forward {
        h: Some(h.view_mut().slice(h_at)?),
        lengths: ragged.then(|| lengths.view()),
        ..Forward::new(&weights, wx_view)
    })?;
    plan.forward(Forward {
        states: Some(states.view_mut().slice(states_at.clone())?),
        saved: Some(SavedMut {
            gates: gates.view_mut().slice(gates_at.clone())?,
            wide: wide.view_mut(),
        }),
        lengths: ragged.then(|| lengths.view()),
        ..Forward::new(&weights, wx_view)
    })?;
    let saved = SavedRef { gates: gates.view().slice(gates_at)?, wide: wide.view() };
    let states_view = states.view().slice(states_at.clone())?;
    plan.backward(Backward {
        wx: (problem.options.save == Save::Recompute).then_some(wx_view),
        lengths: ragged.then(|| lengths.view()),
        d_states: Some(d_states.view().slice(states_at)?),
        ..Backward::new(&weights, states_view, saved, d_wx.view_mut().slice(wx_at)?)
    })?;
    guarded.download(cuda, ("saved.gates", gates_len), &gates)?;
    Ok(Written {
        h: guarded.download(cuda, ("h", h_len), &h)?,
        states: guarded.download(cuda, ("states", states_len), &states)?,
        d_wx: guarded.download(cuda, ("d_wx", wx_len), &d_wx)?,
    })
}

#[test]
fn tensors_may_begin_at_any_element_and_nothing_else_is_written() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let cuda = cuda.with_family(Family::Fused);
    fn check<C: Cell, T: Element + PartialEq + Debug>(cuda: &Cuda, cell: &C) -> Result<()> {
        // Each problem compiles its own kernels, so several problems run in parallel.
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for sizes in [(3, 1, 64), (5, 3, 50), (2, 1, 33), (9, 3, 67)] {
                for (save, layout, ragged) in [
                    (Save::Gates, Layout::BatchMajor, false),
                    (Save::Gates, Layout::TimeMajor, true),
                    (Save::Recompute, Layout::BatchMajor, false),
                ] {
                    threads.push(scope.spawn(move || -> Result<()> {
                        let (batch, heads, head_dim) = sizes;
                        let options =
                            Options { save, layout, reverse: ragged, ..Options::default() };
                        let problem = Problem::new(batch, 9, heads, head_dim).with(options);
                        let want = passes::<C, T>(cuda, cell, &problem, ragged, 0)?;
                        for offset in [1, 2, 3, 4] {
                            let got = passes::<C, T>(cuda, cell, &problem, ragged, offset)?;
                            assert!(
                                got == want,
                                "{} {problem:?}, offset {offset}: other bits",
                                C::NAME
                            );
                        }
                        Ok(())
                    }));
                }
            }
            threads.into_iter().try_for_each(|thread| thread.join().unwrap())
        })
    }
    check::<_, bf16>(&cuda, &Lstm)?;
    check::<_, f16>(&cuda, &Gru)?;
    check::<_, bf16>(&cuda, &Slstm)?;
    check::<_, bf16>(&cuda, &Elman)?;
    check::<_, f32>(&cuda, &Lstm)
}
