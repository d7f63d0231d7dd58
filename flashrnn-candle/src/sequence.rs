//! The optional inputs of a call, and its outputs.

use candle_core::{DType, Device, Error, Result, Tensor};
use flashrnn::Shapes;

use crate::storage::check;

/// The optional inputs of a call of a [`Recurrence`](crate::Recurrence) or of a module.
#[derive(Clone, Copy, Debug, Default)]
pub struct SequenceOptions<'a> {
    /// `[S, B, N, D]` (`[S, L, B, N, D]` for a module): the initial state, zeros if absent. May
    /// have any float type; it is converted to f32, or to f64 if `wx` or `x` is f64. The call
    /// copies it, so a model may overwrite it before the backward pass.
    pub s0: Option<&'a Tensor>,
    /// `[B]`, of an integer type: row b has `lengths[b]` steps, 0 to T. Later outputs are zero, and
    /// later elements of `wx` or `x`, even NaN and infinities, affect no output and no gradient. On
    /// a CUDA device, lengths beyond 0 to T are clamped; on the CPU they are an error.
    pub lengths: Option<&'a Tensor>,
    /// `[B, T]` (or `[T, B]`), of an integer type: a nonzero flag zeroes the row's state before
    /// that step is processed. In a bidirectional module a flag marks the first step of a document,
    /// and the backward direction zeroes its state before the document's last step.
    pub resets: Option<&'a Tensor>,
}

/// The results of a call of a [`Recurrence`](crate::Recurrence).
#[derive(Clone, Debug)]
pub struct Output {
    /// `[B, T, N, D]` (or time-major): h at every step, in the type of `wx`.
    pub h: Tensor,
    /// `[S, B, N, D]`: the final state of each row, in f32, or in f64 if `wx` is f64. It has its
    /// own memory, so keeping it does not keep `h` alive (if it depends on variables, `detach` it
    /// first).
    pub last: Tensor,
    /// `[S, B, T, N, D]` (or time-major): every state at every step, in the type of `wx`. Present
    /// with [`Recurrence::all_states`](crate::Recurrence::all_states), where `h` is a view of its
    /// first part.
    pub states: Option<Tensor>,
}

/// The optional inputs of a call, checked and converted.
#[derive(Default)]
pub(crate) struct Sequence<'a> {
    pub s0: Option<&'a Tensor>,
    /// `[B]` of U32
    pub lengths: Option<Tensor>,
    /// `[B, T]`, or `[T, B]`, of U8
    pub resets: Option<Tensor>,
}

impl<'a> Sequence<'a> {
    pub fn read(options: &SequenceOptions<'a>, shapes: &Shapes) -> Result<Self> {
        let &SequenceOptions { s0, lengths, resets } = options;
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

impl<'a> SequenceOptions<'a> {
    /// Returns the tensors with their names.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&'static str, &'a Tensor)> {
        let named = [("s0", self.s0), ("lengths", self.lengths), ("resets", self.resets)];
        named.into_iter().filter_map(|(name, tensor)| Some((name, tensor?)))
    }
}

/// Checks the shape and the type of an integer tensor.
fn check_integers(name: &'static str, tensor: &Tensor, want: &[usize]) -> Result<()> {
    check(name, tensor, want)?;
    if tensor.dtype().is_int() {
        return Ok(());
    }
    Err(Error::msg(format!("{name} is {:?}, wanted an integer type", tensor.dtype())))
}

/// Converts lengths to U32. On the CPU, it checks that they are within 0 to T. On a GPU, the
/// kernels clamp them.
fn read_lengths(tensor: &Tensor, shapes: &Shapes) -> Result<Tensor> {
    check_integers("lengths", tensor, &[shapes.batch])?;
    if matches!(tensor.device(), Device::Cpu) {
        let lengths = tensor.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        let fits = |&n: &i64| (0..=shapes.time as i64).contains(&n);
        if let Some(index) = lengths.iter().position(|n| !fits(n)) {
            return Err(Error::wrap(flashrnn::Error::Value {
                tensor: "lengths",
                index,
                got: lengths[index].to_string(),
                want: format!("0 to {}", shapes.time),
            }));
        }
    }
    tensor.detach().to_dtype(DType::U32)?.contiguous()
}

/// Converts flags to U8, nonzero where they are set.
fn read_resets(tensor: &Tensor, shapes: &Shapes) -> Result<Tensor> {
    check_integers("resets", tensor, &shapes.resets())?;
    let flags = tensor.detach();
    if flags.dtype() == DType::U8 { flags.contiguous() } else { flags.ne(0i64)?.contiguous() }
}

/// Moves flags `[B, T]` (or `[T, B]`) at the first step of each document to the last step of the
/// document before, where the reverse direction enters that document.
///
/// Flags at or beyond a row's length are dropped, because the flag of step `length` would move to
/// the row's last step.
pub(crate) fn last_steps(
    resets: &Tensor,
    lengths: Option<&Tensor>,
    time_axis: usize,
) -> Result<Tensor> {
    let flags = resets.ne(0i64)?;
    let time = flags.dim(time_axis)?;
    if time == 0 {
        return Ok(flags);
    }
    let none = flags.narrow(time_axis, 0, 1)?.zeros_like()?;
    let moved = Tensor::cat(&[flags.narrow(time_axis, 1, time - 1)?, none], time_axis)?;
    let Some(lengths) = lengths else { return Ok(moved) };
    // The step that each flag comes from, and the lengths, along their own axes.
    let from = Tensor::arange(1, time as i64 + 1, flags.device())?.unsqueeze(1 - time_axis)?;
    let lengths = lengths.to_dtype(DType::I64)?.unsqueeze(time_axis)?;
    moved * from.broadcast_lt(&lengths)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_move_to_the_last_step_of_the_document_before() -> Result<()> {
        let device = &Device::Cpu;
        let resets = Tensor::new(&[[1u8, 0, 2, 1], [0, 1, 0, 1]], device)?;
        let want = [[0u8, 1, 1, 0], [1, 0, 1, 0]];
        assert_eq!(last_steps(&resets, None, 1)?.to_vec2::<u8>()?, want);
        assert_eq!(last_steps(&resets.t()?, None, 0)?.t()?.to_vec2::<u8>()?, want);
        let lengths = Tensor::new(&[3u32, 1], device)?;
        let want = [[0u8, 1, 0, 0], [0, 0, 0, 0]];
        assert_eq!(last_steps(&resets, Some(&lengths), 1)?.to_vec2::<u8>()?, want);
        assert_eq!(last_steps(&resets.t()?, Some(&lengths), 0)?.t()?.to_vec2::<u8>()?, want);
        for time in [0, 1] {
            let flags = resets.narrow(1, 0, time)?;
            assert_eq!(last_steps(&flags, None, 1)?.to_vec2::<u8>()?, vec![vec![0; time]; 2]);
        }
        Ok(())
    }
}
