//! Concatenates ranges of two tensors, in one differentiable operation.
//!
//! candle's own operations could do this in several steps, but differentiating their gradients
//! would silently treat them as constants (see [`gradient`]).

use std::marker::PhantomData;
use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor};
use flashrnn::{bf16, f16};

use crate::host::{Number, cpu, gradient, slice};

/// A part of the result: a range of one of the two tensors, or the sum of a range of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    First(Range<usize>),
    Second(Range<usize>),
    Sum(Range<usize>, Range<usize>),
}

/// Concatenates `parts` into a tensor with one axis. Both tensors must have the same float type.
pub(crate) fn join(first: &Tensor, second: &Tensor, parts: Vec<Part>) -> Result<Tensor> {
    let (first, second) = (first.contiguous()?, second.contiguous()?);
    match first.dtype() {
        DType::F32 => first.apply_op2(&second, Join::<f32>(parts, PhantomData)),
        DType::F64 => first.apply_op2(&second, Join::<f64>(parts, PhantomData)),
        DType::F16 => first.apply_op2(&second, Join::<f16>(parts, PhantomData)),
        DType::BF16 => first.apply_op2(&second, Join::<bf16>(parts, PhantomData)),
        got => Err(Error::msg(format!("weights: got {got:?}, wanted F32, F64, F16 or BF16"))),
    }
}

/// Concatenates all elements of `first` and of `second`.
pub(crate) fn concat(first: &Tensor, second: &Tensor) -> Result<Tensor> {
    let parts = vec![Part::First(0..first.elem_count()), Part::Second(0..second.elem_count())];
    join(first, second, parts)
}

struct Join<P>(Vec<Part>, PhantomData<P>);

impl<P: Number> CustomOp2 for Join<P> {
    fn name(&self) -> &'static str {
        "flashrnn join"
    }

    fn cpu_fwd(
        &self,
        first: &CpuStorage,
        first_layout: &Layout,
        second: &CpuStorage,
        second_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (first, second) =
            (slice::<P>(first, first_layout)?, slice::<P>(second, second_layout)?);
        let mut out = Vec::with_capacity(self.0.iter().map(|part| part.len()).sum());
        for part in &self.0 {
            match part.clone() {
                Part::First(range) => out.extend_from_slice(part_of(first, range)?),
                Part::Second(range) => out.extend_from_slice(part_of(second, range)?),
                Part::Sum(a, b) => {
                    let pairs = part_of(first, a)?.iter().zip(part_of(second, b)?);
                    out.extend(pairs.map(|(&a, &b)| sum(a, b)));
                }
            }
        }
        let len = out.len();
        Ok((P::to_cpu_storage_owned(out), Shape::from(len)))
    }

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        _out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d_out = d_out.contiguous()?;
        let (storage, layout) = d_out.storage_and_layout();
        let d_out = slice::<P>(cpu(&storage)?, layout)?;
        let scatter = |argument: &Tensor, range_of: fn(&Part) -> Option<Range<usize>>| {
            argument.track_op().then(|| self.scatter(d_out, argument, range_of)).transpose()
        };
        Ok((scatter(first, Part::of_first)?, scatter(second, Part::of_second)?))
    }
}

impl<P: Number> Join<P> {
    /// Sums each part's gradient into the range of `argument` that the part was copied from.
    fn scatter(
        &self,
        d_out: &[P],
        argument: &Tensor,
        range_of: fn(&Part) -> Option<Range<usize>>,
    ) -> Result<Tensor> {
        let mut d = vec![P::default(); argument.elem_count()];
        let mut rest = d_out;
        for part in &self.0 {
            let (d_part, after) = rest.split_at(part.len());
            rest = after;
            let Some(range) = range_of(part) else { continue };
            for (d, &d_part) in d[range].iter_mut().zip(d_part) {
                *d = sum(*d, d_part);
            }
        }
        gradient(P::to_cpu_storage_owned(d), argument)
    }
}

impl Part {
    fn len(&self) -> usize {
        let (Self::First(range) | Self::Second(range) | Self::Sum(range, _)) = self;
        range.len()
    }

    /// Returns the range of the first tensor, if the part reads it.
    fn of_first(&self) -> Option<Range<usize>> {
        match self {
            Self::First(range) | Self::Sum(range, _) => Some(range.clone()),
            Self::Second(_) => None,
        }
    }

    /// Returns the range of the second tensor, if the part reads it.
    fn of_second(&self) -> Option<Range<usize>> {
        match self {
            Self::Second(range) | Self::Sum(_, range) => Some(range.clone()),
            Self::First(_) => None,
        }
    }
}

fn sum<P: Number>(a: P, b: P) -> P {
    P::from_wide(a.to_wide() + b.to_wide())
}

fn part_of<P>(values: &[P], range: Range<usize>) -> Result<&[P]> {
    values.get(range).ok_or_else(|| Error::msg("flashrnn: a part exceeds its tensor"))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn parts_and_their_gradients_are_in_place() -> Result<()> {
        let first = Var::new(&[1f64, 2.0, 3.0], &Device::Cpu)?;
        let second = Var::new(&[10f64, 20.0], &Device::Cpu)?;
        let parts = vec![Part::Second(1..2), Part::Sum(1..3, 0..2), Part::First(0..1)];
        let out = join(&first, &second, parts)?;
        assert_eq!(out.to_vec1::<f64>()?, [20.0, 12.0, 23.0, 1.0]);
        let weights = Tensor::new(&[1f64, 2.0, 3.0, 4.0], &Device::Cpu)?;
        let grads = (out * weights)?.sum_all()?.backward()?;
        assert_eq!(
            grads.get(&first).map(Tensor::to_vec1::<f64>).transpose()?,
            Some(vec![4.0, 2.0, 3.0])
        );
        assert_eq!(
            grads.get(&second).map(Tensor::to_vec1::<f64>).transpose()?,
            Some(vec![2.0, 4.0])
        );
        Ok(())
    }
}
