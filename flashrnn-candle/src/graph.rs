//! Attaches results that were computed beforehand to candle's graph.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor,
};

use crate::storage::{elsewhere, plain, scatter};

/// Makes a tensor that depends on `inputs`, at most three, with a value computed from them
/// beforehand.
///
/// `backward` takes the inputs and the gradient of the result, and returns the gradient of each
/// input. Every input that depends on a variable needs one, made by [`gradient`].
pub(crate) fn attach<const N: usize>(
    name: &'static str,
    inputs: [&Tensor; N],
    value: Storage,
    shape: impl Into<Shape>,
    backward: impl Fn([&Tensor; N], &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static,
) -> Result<Tensor> {
    const { assert!(N >= 1 && N <= 3) };
    if !inputs.iter().any(|input| input.track_op()) {
        return Ok(plain(value, shape));
    }
    let shape = shape.into();
    let attached = Attached::<_, N> { name, value: Mutex::new(Some(value)), shape, backward };
    // An operation always has three inputs. Further ones repeat the last and get no gradient.
    let [first, second, third] = [0, 1, 2].map(|i| inputs[i.min(N - 1)]);
    first.apply_op3(second, third, attached)
}

/// An operation that returns a value computed beforehand.
struct Attached<B, const N: usize> {
    name: &'static str,
    /// The value. The forward pass, which runs only once, takes it.
    value: Mutex<Option<Storage>>,
    shape: Shape,
    backward: B,
}

impl<B, const N: usize> Attached<B, N> {
    fn take(&self) -> Result<Storage> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(|| Error::msg("flashrnn: an operation ran forward twice"))
    }
}

impl<B, const N: usize> CustomOp3 for Attached<B, N>
where
    B: Fn([&Tensor; N], &Tensor) -> Result<[Option<Tensor>; N]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            Storage::Cpu(value) => Ok((value, self.shape.clone())),
            _ => Err(elsewhere()),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            Storage::Cuda(value) => Ok((value, self.shape.clone())),
            _ => Err(elsewhere()),
        }
    }

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        third: &Tensor,
        _: &Tensor,
        d: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let inputs = [first, second, third];
        let mut gradients = (self.backward)(std::array::from_fn(|i| inputs[i]), d)?.into_iter();
        let mut next = || gradients.next().flatten();
        Ok((next(), next(), next()))
    }
}

/// Makes the gradient of `argument` from the values that a backward pass computed.
///
/// The gradient of a variable gets a graph of one node whose own backward pass fails; otherwise a
/// second derivative would silently treat it as a constant. The node refers to nothing of the
/// forward pass, so keeping a gradient keeps no graph alive. candle detaches the gradients of all
/// other tensors before it reads them, unless the environment asks for second derivatives.
pub(crate) fn gradient(values: Storage, argument: &Tensor) -> Result<Tensor> {
    if needs_node(argument) {
        attach("flashrnn gradient", [argument], values, argument.shape(), |_, _| {
            Err(no_second_derivatives())
        })
    } else {
        Ok(plain(values, argument.shape()))
    }
}

/// Does what [`gradient`] does for values that are part of another tensor. Copies them only if the
/// gradient gets a graph.
pub(crate) fn gradient_part(values: Tensor, argument: &Tensor) -> Result<Tensor> {
    if needs_node(argument) {
        let len = argument.elem_count();
        gradient(scatter(&[(0, values)], len, argument)?, argument)
    } else {
        values.detach().reshape(argument.shape())
    }
}

/// Returns whether the gradient of `argument` gets a graph.
fn needs_node(argument: &Tensor) -> bool {
    argument.is_variable() || second_derivatives_wanted()
}

/// Makes the error for differentiating a gradient.
pub(crate) fn no_second_derivatives() -> Error {
    Error::msg(
        "flashrnn has no second derivatives; detach() a gradient before computing a loss from it",
    )
}

/// Returns whether candle keeps the graphs of gradients while it computes with them.
fn second_derivatives_wanted() -> bool {
    std::env::var_os("CANDLE_GRAD_DO_NOT_DETACH")
        .is_some_and(|value| !value.is_empty() && value != "0")
}
