//! Access to the host memory of candle's tensors, and gradients as tensors.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, Device, DeviceLocation, Error, Layout, Result, Shape, Storage, Tensor,
    Var, WithDType,
};
use flashrnn::Element;

/// An element type that both flashrnn and candle support, together with its wide type.
pub(crate) trait Number: Element<Wide: WithDType> + WithDType {}
impl<T: Element<Wide: WithDType> + WithDType> Number for T {}

/// Checks that every tensor is in host memory.
pub(crate) fn on_host<'a>(
    tensors: impl IntoIterator<Item = (&'static str, &'a Tensor)>,
) -> Result<()> {
    let devices = tensors.into_iter().map(|(name, tensor)| (name, tensor.device().location()));
    devices_error(&devices.collect::<Vec<_>>()).map_or(Ok(()), |error| Err(Error::msg(error)))
}

/// Describes the first tensor that is not on the CPU, and one that is.
fn devices_error(devices: &[(&'static str, DeviceLocation)]) -> Option<String> {
    let on_cpu = |(_, device): &&(&str, DeviceLocation)| *device == DeviceLocation::Cpu;
    let (name, device) = devices.iter().find(|tensor| !on_cpu(tensor))?;
    let beside = devices.iter().find(on_cpu);
    let beside = beside.map(|(name, _)| format!(" and {name} is on the CPU")).unwrap_or_default();
    Some(format!("{name} is on {device:?}{beside}; flashrnn-candle needs tensors on the CPU"))
}

/// Checks a tensor's shape.
pub(crate) fn check(name: &'static str, tensor: &Tensor, want: &[usize]) -> Result<()> {
    if tensor.dims() == want {
        return Ok(());
    }
    let (got, want) = (tensor.dims().to_vec(), want.to_vec());
    Err(Error::wrap(flashrnn::Error::Shape { tensor: name, got, want }))
}

/// Returns the elements of a contiguous tensor.
pub(crate) fn slice<'a, P: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [P]> {
    let all = storage.as_slice::<P>()?;
    let part = layout.contiguous_offsets().and_then(|(start, end)| all.get(start..end));
    part.ok_or_else(|| Error::msg("flashrnn: a tensor is not contiguous"))
}

/// Returns the host memory of a tensor.
pub(crate) fn cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => Err(Error::msg("flashrnn: a tensor left the CPU")),
    }
}

/// Rounds to `T`. Does not copy if `T` is wide itself.
pub(crate) fn narrow<T: Number>(wide: &[T::Wide]) -> Cow<'_, [T]> {
    if <T as Element>::DTYPE == <T::Wide as Element>::DTYPE {
        Cow::Borrowed(bytemuck::cast_slice(wide))
    } else {
        Cow::Owned(wide.iter().map(|&x| T::from_wide(x)).collect())
    }
}

/// Widens from `T`. Does not copy if `T` is wide itself.
pub(crate) fn widen<T: Number>(values: Vec<T>) -> Vec<T::Wide> {
    if <T as Element>::DTYPE == <T::Wide as Element>::DTYPE {
        bytemuck::cast_vec(values)
    } else {
        values.into_iter().map(Element::to_wide).collect()
    }
}

/// Makes the gradient of `argument` from the values that a backward pass computed.
///
/// The gradient of a variable gets a graph of one node whose own backward pass fails; otherwise a
/// second derivative would silently treat it as a constant. The node refers to nothing of the
/// forward pass, so keeping a gradient keeps no graph alive. candle detaches the gradients of all
/// other tensors before it reads them, unless the environment asks for second derivatives.
pub(crate) fn gradient(values: CpuStorage, argument: &Tensor) -> Result<Tensor> {
    let gradient = Gradient { shape: argument.shape().clone(), values: Mutex::new(Some(values)) };
    let source = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?;
    if argument.is_variable() || second_derivatives_wanted() {
        Var::from_tensor(&source)?.apply_op1(gradient)
    } else {
        source.apply_op1_no_bwd(&gradient)
    }
}

/// Returns whether candle keeps the graphs of gradients while it computes with them.
fn second_derivatives_wanted() -> bool {
    std::env::var_os("CANDLE_GRAD_DO_NOT_DETACH")
        .is_some_and(|value| !value.is_empty() && value != "0")
}

/// An operation that returns precomputed values and has no derivative.
struct Gradient {
    shape: Shape,
    /// The values. The forward pass, which runs only once, takes them.
    values: Mutex<Option<CpuStorage>>,
}

impl CustomOp1 for Gradient {
    fn name(&self) -> &'static str {
        "flashrnn gradient"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner).take();
        let values =
            values.ok_or_else(|| Error::msg("flashrnn: a gradient was requested twice"))?;
        Ok((values, self.shape.clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Err(Error::msg(
            "flashrnn has no second derivatives; detach() a gradient before computing a loss \
             from it",
        ))
    }
}

/// Hashes up to 64 evenly spaced elements of a tensor, to detect that it was overwritten. Returns
/// `None` for a tensor that is not contiguous.
pub(crate) fn fingerprint(storage: &CpuStorage, layout: &Layout) -> Option<u64> {
    match storage {
        CpuStorage::F32(values) => sample(values, layout),
        CpuStorage::F64(values) => sample(values, layout),
        CpuStorage::F16(values) => sample(values, layout),
        CpuStorage::BF16(values) => sample(values, layout),
        _ => None,
    }
}

fn sample<P: Element>(values: &[P], layout: &Layout) -> Option<u64> {
    let (start, end) = layout.contiguous_offsets()?;
    let values = values.get(start..end)?;
    let count = values.len().min(64);
    let bits = (0..count).map(|i| values[i * values.len() / count].to_f64().to_bits());
    Some(bits.fold(count as u64, |sum, bits| {
        (sum.rotate_left(5) ^ bits).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }))
}

/// Checks that a tensor still has the fingerprint `before`, taken in the forward pass.
pub(crate) fn check_unchanged(
    name: &str,
    before: Option<u64>,
    storage: &CpuStorage,
    layout: &Layout,
) -> Result<()> {
    if fingerprint(storage, layout) == before {
        return Ok(());
    }
    Err(Error::msg(format!(
        "{name} was changed in place between the forward pass and the backward pass, which needs it"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_on_two_devices_are_named() {
        let cuda = DeviceLocation::Cuda { gpu_id: 1 };
        let error = devices_error(&[("x", cuda), ("w", DeviceLocation::Cpu)]).unwrap_or_default();
        assert!(error.starts_with("x is on Cuda { gpu_id: 1 } and w is on the CPU; "), "{error}");
        let error = devices_error(&[("wx", cuda), ("r", cuda)]).unwrap_or_default();
        assert!(error.starts_with("wx is on Cuda { gpu_id: 1 }; "), "{error}");
        assert_eq!(devices_error(&[("x", DeviceLocation::Cpu)]), None);
    }
}
