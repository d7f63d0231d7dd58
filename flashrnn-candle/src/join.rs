//! Concatenates tensors, or ranges of two tensors, in one differentiable operation.
//!
//! candle's own operations could do this in several steps, but differentiating their gradients
//! would silently treat them as constants (see [`gradient`]).

use std::ops::Range;

use candle_core::{Error, Result, Storage, Tensor};

use crate::graph::{attach, gradient, gradient_part};
use crate::storage::{plain, scatter};

/// A part of the result: a range of one of the two tensors, or the sum of a range of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    First(Range<usize>),
    Second(Range<usize>),
    Sum(Range<usize>, Range<usize>),
}

/// Concatenates `parts` into a tensor with one axis. Both tensors must have the same type.
pub(crate) fn join(first: &Tensor, second: &Tensor, parts: Vec<Part>) -> Result<Tensor> {
    let parts = merged(parts);
    let (first, second) = (first.contiguous()?, second.contiguous()?);
    let (from, also) = (first.detach().flatten_all()?, second.detach().flatten_all()?);
    let range = |tensor: &Tensor, range: &Range<usize>| tensor.narrow(0, range.start, range.len());
    let mut len = 0;
    let mut values = Vec::with_capacity(parts.len());
    for part in &parts {
        let value = match part {
            Part::First(of_first) => range(&from, of_first)?,
            Part::Second(of_second) => range(&also, of_second)?,
            Part::Sum(a, b) => (range(&from, a)? + range(&also, b)?)?,
        };
        values.push((len, value));
        len += part.len();
    }
    let joined = scatter(&values, len, &first)?;
    attach("flashrnn join", [&first, &second], joined, len, move |[first, second], d| {
        let d = d.contiguous()?;
        let back = |argument: &Tensor, range_of: fn(&Part) -> Option<&Range<usize>>| {
            argument.track_op().then(|| d_argument(&parts, &d, argument, range_of)).transpose()
        };
        Ok([back(first, Part::of_first)?, back(second, Part::of_second)?])
    })
}

/// Joins parts that follow one another in their tensors.
fn merged(parts: Vec<Part>) -> Vec<Part> {
    let mut merged: Vec<Part> = Vec::with_capacity(parts.len());
    for part in parts {
        match (merged.last_mut(), &part) {
            (Some(Part::First(last)), Part::First(next))
            | (Some(Part::Second(last)), Part::Second(next))
                if last.end == next.start =>
            {
                last.end = next.end;
            }
            (Some(Part::Sum(a, b)), Part::Sum(next_a, next_b))
                if a.end == next_a.start && b.end == next_b.start =>
            {
                (a.end, b.end) = (next_a.end, next_b.end);
            }
            _ => merged.push(part),
        }
    }
    merged
}

/// Sums each part's gradient into the range of `argument` that the part was copied from.
fn d_argument(
    parts: &[Part],
    d: &Tensor,
    argument: &Tensor,
    range_of: fn(&Part) -> Option<&Range<usize>>,
) -> Result<Tensor> {
    // Each layer has pieces that do not overlap, and there is hardly ever a second one.
    let mut layers: Vec<Vec<(usize, Tensor)>> = vec![vec![]];
    let mut start = 0;
    for part in parts {
        if let Some(range) = range_of(part) {
            let overlaps = |(offset, piece): &(usize, Tensor)| {
                range.start < offset + piece.elem_count() && *offset < range.end
            };
            let free = layers.iter_mut().find(|layer| !layer.iter().any(overlaps));
            let piece = (range.start, d.narrow(0, start, range.len())?);
            match free {
                Some(layer) => layer.push(piece),
                None => layers.push(vec![piece]),
            }
        }
        start += part.len();
    }
    let len = argument.elem_count();
    let mut sum = scatter(&layers[0], len, argument)?;
    for layer in &layers[1..] {
        let more = (plain(sum, len) + plain(scatter(layer, len, argument)?, len))?;
        sum = scatter(&[(0, more)], len, argument)?;
    }
    gradient(sum, argument)
}

/// Concatenates all elements of `tensors`, which must have the same type.
pub(crate) fn concat(tensors: &[&Tensor]) -> Result<Tensor> {
    let contiguous =
        tensors.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    let Some(like) = contiguous.first() else {
        return Err(Error::msg("flashrnn: nothing to concatenate"));
    };
    let mut len = 0;
    let mut parts = Vec::with_capacity(contiguous.len());
    for tensor in &contiguous {
        parts.push((len, tensor.detach()));
        len += tensor.elem_count();
    }
    let joined = scatter(&parts, len, like)?;
    // An operation of candle's takes three tensors at most, so the last ones come as the result of
    // another. Nothing reads its value.
    let mut inputs = contiguous.clone();
    while inputs.len() > 3 {
        let last = inputs.split_off(inputs.len() - 3);
        let len = last.iter().map(Tensor::elem_count).sum();
        let unread = scatter(&[], len, like)?;
        inputs.push(attach_concat(&last, unread, len)?);
    }
    attach_concat(&inputs, joined, len)
}

/// Makes the tensor of `len` elements that depends on up to three concatenated inputs.
fn attach_concat(inputs: &[Tensor], value: Storage, len: usize) -> Result<Tensor> {
    match inputs {
        [a] => attach_concat_of([a], value, len),
        [a, b] => attach_concat_of([a, b], value, len),
        [a, b, c] => attach_concat_of([a, b, c], value, len),
        _ => Err(Error::msg("flashrnn: more tensors than an operation takes")),
    }
}

fn attach_concat_of<const N: usize>(
    inputs: [&Tensor; N],
    value: Storage,
    len: usize,
) -> Result<Tensor> {
    attach::<N>("flashrnn concat", inputs, value, len, |inputs, d| {
        let d = d.contiguous()?;
        let mut start = 0;
        let mut gradients = [const { None }; N];
        for (gradient_of, input) in gradients.iter_mut().zip(inputs) {
            let len = input.elem_count();
            if input.track_op() {
                *gradient_of = Some(gradient_part(d.narrow(0, start, len)?, input)?);
            }
            start += len;
        }
        Ok(gradients)
    })
}

impl Part {
    fn len(&self) -> usize {
        let (Self::First(range) | Self::Second(range) | Self::Sum(range, _)) = self;
        range.len()
    }

    /// Returns the range of the first tensor, if the part reads it.
    fn of_first(&self) -> Option<&Range<usize>> {
        match self {
            Self::First(range) | Self::Sum(range, _) => Some(range),
            Self::Second(_) => None,
        }
    }

    /// Returns the range of the second tensor, if the part reads it.
    fn of_second(&self) -> Option<&Range<usize>> {
        match self {
            Self::Second(range) | Self::Sum(_, range) => Some(range),
            Self::First(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn values(tensor: Option<&Tensor>) -> Result<Vec<f64>> {
        tensor.map_or(Ok(vec![]), |tensor| tensor.flatten_all()?.to_vec1())
    }

    #[test]
    fn parts_and_their_gradients_are_in_place() -> Result<()> {
        let first = Var::new(&[1f64, 2.0, 3.0], &Device::Cpu)?;
        let second = Var::new(&[10f64, 20.0], &Device::Cpu)?;
        let parts = vec![Part::Second(1..2), Part::Sum(1..3, 0..2), Part::First(0..1)];
        let out = join(&first, &second, parts)?;
        assert_eq!(out.to_vec1::<f64>()?, [20.0, 12.0, 23.0, 1.0]);
        let weights = Tensor::new(&[1f64, 2.0, 3.0, 4.0], &Device::Cpu)?;
        let grads = (out * weights)?.sum_all()?.backward()?;
        assert_eq!(values(grads.get(&first))?, [4.0, 2.0, 3.0]);
        assert_eq!(values(grads.get(&second))?, [2.0, 4.0], "two parts read element 1");
        Ok(())
    }

    #[test]
    fn parts_that_follow_one_another_are_one() {
        let parts = vec![
            Part::Sum(0..2, 4..6),
            Part::Sum(2..3, 6..7),
            Part::First(3..4),
            Part::First(4..6),
            Part::First(7..8),
        ];
        let want = [Part::Sum(0..3, 4..7), Part::First(3..6), Part::First(7..8)];
        assert_eq!(merged(parts), want);
    }

    #[test]
    fn any_number_of_tensors_is_concatenated() -> Result<()> {
        for count in 1..=8 {
            let make = |i: usize| Var::new(vec![vec![i as f64; 2]; i], &Device::Cpu);
            let vars = (1..=count).map(make).collect::<Result<Vec<_>>>()?;
            let tensors: Vec<&Tensor> = vars.iter().map(Var::as_tensor).collect();
            let all = concat(&tensors)?;
            let want: Vec<f64> = (1..=count).flat_map(|i| vec![i as f64; 2 * i]).collect();
            assert_eq!(all.to_vec1::<f64>()?, want);
            let grads = all.sqr()?.sum_all()?.backward()?;
            for (i, var) in vars.iter().enumerate() {
                assert_eq!(values(grads.get(var))?, vec![2.0 * (i + 1) as f64; 2 * (i + 1)]);
            }
        }
        Ok(())
    }
}
