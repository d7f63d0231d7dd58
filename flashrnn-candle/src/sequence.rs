//! What a call takes besides wx and the weights, and what it returns.

use candle_core::{DType, Error, Result, Tensor};
use flashrnn::Shapes;

use crate::host::{check, on_host};

/// The inputs of a call that may be absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct SequenceOptions<'a> {
    /// `[S, B, N, D]`: the initial state, zeros if absent. Any float type; used as f32, or f64
    /// beside an f64 `wx`. The call copies it, so a model may overwrite it before the backward
    /// pass.
    pub s0: Option<&'a Tensor>,
    /// `[B]`, of an integer type: row b has `lengths[b]` steps, 0 to T. Later outputs are zero.
    /// What lies there in `wx` or `x`, NaN and infinities included, reaches no output and no
    /// gradient.
    pub lengths: Option<&'a Tensor>,
    /// `[B, T]` (or `[T, B]`), of an integer type: where not 0, the state is zeroed before that
    /// step, in processing order.
    pub resets: Option<&'a Tensor>,
}

/// The results of a call.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[B, T, N, D]` (or time-major): h at every step, in the type of `wx`.
    pub h: Tensor,
    /// `[S, B, N, D]`: the state each row ends in, f32, or f64 beside f64. Memory of its own: kept
    /// on its own (after `detach` where it depends on variables), it does not keep `h`.
    pub last: Tensor,
    /// `[S, B, T, N, D]` (or time-major): every state at every step, in the type of `wx`. Present
    /// with [`Rnn::all_states`](crate::Rnn::all_states); `h` is then a view of its beginning.
    pub states: Option<Tensor>,
}

/// The optional inputs of a call, checked and read.
#[derive(Default)]
pub(crate) struct Sequence<'a> {
    pub s0: Option<&'a Tensor>,
    pub lengths: Option<Vec<i32>>,
    pub resets: Option<Vec<u8>>,
}

impl<'a> Sequence<'a> {
    pub fn read(options: &SequenceOptions<'a>, shapes: &Shapes) -> Result<Self> {
        let &SequenceOptions { s0, lengths, resets } = options;
        let named = [("s0", s0), ("lengths", lengths), ("resets", resets)];
        on_host(named.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))))?;
        if let Some(s0) = s0 {
            check("s0", s0, &shapes.state())?;
            if !s0.dtype().is_float() {
                return Err(Error::msg(format!("s0 is {:?}, wanted a float type", s0.dtype())));
            }
        }
        Ok(Self {
            s0,
            lengths: lengths.map(|lengths| read_lengths(lengths, shapes)).transpose()?,
            resets: resets.map(|resets| read_resets(resets, shapes)).transpose()?,
        })
    }
}

/// The values of an integer tensor of shape `want`.
fn read_integers(name: &'static str, tensor: &Tensor, want: &[usize]) -> Result<Vec<i64>> {
    check(name, tensor, want)?;
    if !tensor.dtype().is_int() {
        return Err(Error::msg(format!("{name} is {:?}, wanted an integer type", tensor.dtype())));
    }
    tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1()
}

fn read_lengths(tensor: &Tensor, shapes: &Shapes) -> Result<Vec<i32>> {
    let lengths = read_integers("lengths", tensor, &[shapes.batch])?;
    // time is at most i32::MAX, so a length that fits 0..=time fits i32.
    let fits = |&n: &i64| (0..=shapes.time as i64).contains(&n);
    match lengths.iter().position(|n| !fits(n)) {
        None => Ok(lengths.iter().map(|&n| n as i32).collect()),
        Some(index) => Err(Error::wrap(flashrnn::Error::Value {
            tensor: "lengths",
            index,
            got: lengths[index].to_string(),
            want: format!("0 to {}", shapes.time),
        })),
    }
}

fn read_resets(tensor: &Tensor, shapes: &Shapes) -> Result<Vec<u8>> {
    let flags = read_integers("resets", tensor, &shapes.resets())?;
    Ok(flags.iter().map(|&flag| u8::from(flag != 0)).collect())
}
