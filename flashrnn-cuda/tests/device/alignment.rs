//! Head dimensions that are no multiple of 8, and tensors that begin anywhere: what the fused
//! kernels copy with words of 8 and 4 bytes, and where rows begin in the middle of a word.

use std::fmt::Debug;
use std::thread;

use flashrnn_core::{
    Backend, Backward, Cell, Element, Elman, Forward, Gru, Layout, Lstm, Options, Plan, Problem,
    Result, Save, SavedMut, SavedRef, Slstm, bf16, f16,
};
use flashrnn_cuda::{Cuda, Family};
use flashrnn_testsuite::random::Random;
use flashrnn_testsuite::{Case, Results, Tensors, errors, run};

use super::cuda;

#[test]
fn every_head_dimension_is_as_exact_as_multiples_of_8() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let cuda = cuda.with_family(Family::Fused);
    fn check<C: Cell, T: Element>(cuda: &Cuda, cell: &C, failed: &mut Vec<String>) -> Result<()> {
        // The conformance suite's bounds for 16-bit tensors, and one for mistakes in f32.
        let allowed = if size_of::<T>() == 4 { 2e-5 } else { 1.5e-2 };
        // Rows of 2, 4 and 8 bytes' alignment, in one block and in clusters whose last block has 1
        // unit or more; with one carrying warp from 257 on (LSTM).
        let dims: &[(usize, usize)] = if size_of::<T>() == 4 {
            &[(5, 33), (3, 50), (2, 97)]
        } else {
            &[(9, 33), (5, 50), (40, 51), (5, 100), (2, 149), (3, 257), (1, 383)]
        };
        for &(batch, head_dim) in dims {
            // GRU has no fused forward kernel beyond.
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
                // sLSTM's last state has discontinuities.
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

/// Elements before and after each tensor, which nobody may write; more than a word.
const GUARD: usize = 24;

/// What both passes write, each `[GUARD + offset, the tensor, GUARD]`.
#[derive(PartialEq)]
struct Written<T> {
    h: Vec<T>,
    states: Vec<T>,
    d_wx: Vec<T>,
}

/// Runs both passes on tensors that begin `GUARD + offset` elements into memory of their own, all
/// output poisoned. Returns the tensors alone, after checking that nothing beside them changed.
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
    let first = GUARD + offset;
    let placed = |values: Vec<T>| {
        let fill = [T::from_f64(f64::NAN); 1];
        [fill.repeat(first), values, fill.repeat(GUARD)].concat()
    };
    let (r, b) = (
        cuda.upload(&values(size(&shapes.r()), 0.1))?,
        cuda.upload(&values(size(&shapes.b()), 1.0))?,
    );
    let wx = cuda.upload(&placed(values(size(&shapes.wx()), 1.0)))?;
    let d_states = cuda.upload(&placed(values(size(&shapes.states()), 1.0)))?;
    let lengths: Vec<i32> =
        (0..shapes.batch).map(|row| (shapes.time - row % shapes.time) as i32).collect();
    let lengths = cuda.upload(&lengths)?;
    let poison = T::from_f64(-12345.0);
    let out = |len: usize| cuda.upload(&vec![poison; first + len + GUARD]);
    let (h_len, states_len, wx_len) =
        (size(&shapes.h()), size(&shapes.states()), size(&shapes.wx()));
    let (mut h, mut states, mut d_wx) = (out(h_len)?, out(states_len)?, out(wx_len)?);

    let plan = cuda.plan::<T, T, _>(cell, problem)?;
    let weights = plan.pack(r.view(), b.view())?;
    // What is saved may lie anywhere too.
    let [gates_len, wide_len] = shapes.saved::<T>(problem.options.save);
    let mut gates = out(gates_len)?;
    let mut wide = cuda.alloc::<T::Wide>(wide_len)?;
    let wx_view = wx.view().slice(first..first + wx_len)?;
    plan.forward(Forward {
        h: Some(h.view_mut().slice(first..first + h_len)?),
        lengths: ragged.then(|| lengths.view()),
        ..Forward::new(&weights, wx_view)
    })?;
    plan.forward(Forward {
        states: Some(states.view_mut().slice(first..first + states_len)?),
        saved: Some(SavedMut {
            gates: gates.view_mut().slice(first..first + gates_len)?,
            wide: wide.view_mut(),
        }),
        lengths: ragged.then(|| lengths.view()),
        ..Forward::new(&weights, wx_view)
    })?;
    let saved =
        SavedRef { gates: gates.view().slice(first..first + gates_len)?, wide: wide.view() };
    plan.backward(Backward {
        wx: (problem.options.save == Save::Recompute).then_some(wx_view),
        lengths: ragged.then(|| lengths.view()),
        d_states: Some(d_states.view().slice(first..first + states_len)?),
        ..Backward::new(
            &weights,
            states.view().slice(first..first + states_len)?,
            saved,
            d_wx.view_mut().slice(first..first + wx_len)?,
        )
    })?;
    let tensor = |name: &str, all: Vec<T>, len: usize| {
        let (before, rest) = all.split_at(first);
        let (tensor, after) = rest.split_at(len);
        let untouched = |guard: &[T]| guard.iter().all(|v| *v == poison);
        assert!(
            untouched(before) && untouched(after),
            "{name} of {problem:?}: written beside it, offset {offset}"
        );
        assert!(
            tensor.iter().all(|v| *v != poison),
            "{name} of {problem:?}: not all written, offset {offset}"
        );
        tensor.to_vec()
    };
    tensor("saved.gates", cuda.download(gates.view())?, gates_len);
    Ok(Written {
        h: tensor("h", cuda.download(h.view())?, h_len),
        states: tensor("states", cuda.download(states.view())?, states_len),
        d_wx: tensor("d_wx", cuda.download(d_wx.view())?, wx_len),
    })
}

#[test]
fn tensors_may_begin_anywhere_and_nothing_beside_them_is_written() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let cuda = cuda.with_family(Family::Fused);
    fn check<C: Cell, T: Element + PartialEq + Debug>(cuda: &Cuda, cell: &C) -> Result<()> {
        // Each compiles kernels of its own, so several at once.
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
