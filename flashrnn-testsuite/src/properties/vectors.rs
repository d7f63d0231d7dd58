//! Test vectors computed by PyTorch in float64 with autograd, written by `vectors/generate.py`.

use flashrnn_core::reference::{Inputs, OutputGradients};
use flashrnn_core::{Backend, Cell, Dtype, Elman, Gru, Lstm, Options, Problem, Slstm};
use safetensors::SafeTensors;

use crate::case::Case;
use crate::results::{Results, error, tolerance};
use crate::run::run;
use crate::suite::{Failures, Suite, ok};

/// The backend agrees with PyTorch's nn.LSTM, nn.GRU and nn.RNN, and with an sLSTM written in
/// PyTorch without a stabiliser. The vectors cover initial states, lengths (packed sequences) and
/// reverse (the second direction of a bidirectional layer).
pub fn pytorch<B: Backend>(suite: &Suite<B>) -> Failures {
    let backend = &suite.backend;
    let outcomes = [
        ("lstm", check(backend, &Lstm, include_bytes!("../../vectors/lstm.safetensors"))),
        (
            "lstm_reverse",
            check(backend, &Lstm, include_bytes!("../../vectors/lstm_reverse.safetensors")),
        ),
        ("gru", check(backend, &Gru, include_bytes!("../../vectors/gru.safetensors"))),
        (
            "gru_reverse",
            check(backend, &Gru, include_bytes!("../../vectors/gru_reverse.safetensors")),
        ),
        ("elman", check(backend, &Elman, include_bytes!("../../vectors/elman.safetensors"))),
        (
            "elman_reverse",
            check(backend, &Elman, include_bytes!("../../vectors/elman_reverse.safetensors")),
        ),
        ("slstm", check(backend, &Slstm, include_bytes!("../../vectors/slstm.safetensors"))),
    ];
    outcomes
        .into_iter()
        .filter_map(|(name, outcome)| outcome.err().map(|why| format!("{name}: {why}")))
        .collect()
}

/// Runs the case in a file, and compares every result the file contains.
fn check<B: Backend, C: Cell>(backend: &B, cell: &C, file: &[u8]) -> Result<(), String> {
    let file = SafeTensors::deserialize(file).map_err(|error| error.to_string())?;
    let case = read(cell, &file)?;
    // Compares the f64 reference with PyTorch as well.
    compare(&file, &ok(Results::reference(cell, &case))?, Dtype::F64)
        .map_err(|why| format!("the reference: {why}"))?;
    let dtypes = backend.info().dtypes;
    if dtypes.contains(&Dtype::F64) {
        compare(&file, &ok(run::<B, C, f64, f64>(backend, cell, &case))?, Dtype::F64)?;
    }
    if dtypes.contains(&Dtype::F32) {
        compare(&file, &ok(run::<B, C, f32, f32>(backend, cell, &case))?, Dtype::F32)?;
    }
    Ok(())
}

fn compare(file: &SafeTensors<'_>, got: &Results, dtype: Dtype) -> Result<(), String> {
    for name in ["h", "last", "d_wx", "d_r", "d_b", "d_s0"] {
        if let Some(want) = floats(file, name) {
            let error = error(got.get(name), &want);
            if error > tolerance(dtype) {
                return Err(format!("{name} in {dtype}: relative error {error:.3e}"));
            }
        }
    }
    Ok(())
}

fn read<C: Cell>(_: &C, file: &SafeTensors<'_>) -> Result<Case, String> {
    let need = |name| floats(file, name).ok_or(format!("no {name}"));
    // wx: [B, T, Gx, N, D]
    let wx = file.tensor("wx").map_err(|error| error.to_string())?;
    let &[batch, time, _, heads, head_dim] = wx.shape() else {
        return Err("wx does not have five dimensions".into());
    };
    let problem = Problem::new(batch, time, heads, head_dim)
        .with(Options { reverse: file.tensor("reverse").is_ok(), ..Options::default() });
    let shapes = ok(problem.shapes::<C>())?;
    let lengths = file.tensor("lengths").ok().map(|lengths| {
        lengths
            .data()
            .chunks_exact(4)
            .map(|v| i32::from_le_bytes([v[0], v[1], v[2], v[3]]))
            .collect()
    });
    let inputs = Inputs {
        wx: need("wx")?,
        r: need("r")?,
        b: need("b")?,
        s0: floats(file, "s0"),
        lengths,
        ..Inputs::default()
    };
    // d_states: [S, B, T, N, D], whose first part is d_h
    let mut d_states = need("d_h")?;
    d_states.resize(shapes.states().iter().product(), 0.0);
    let d = OutputGradients { d_states: Some(d_states), d_last: floats(file, "d_last") };
    Ok(Case { problem, inputs, d })
}

/// Returns the values of a float64 tensor, if the file contains it.
fn floats(file: &SafeTensors<'_>, name: &str) -> Option<Vec<f64>> {
    let tensor = file.tensor(name).ok()?;
    let value = |v: &[u8]| f64::from_le_bytes([v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]]);
    Some(tensor.data().chunks_exact(8).map(value).collect())
}
