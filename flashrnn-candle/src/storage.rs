//! Access to the memory of candle's tensors.

use std::borrow::Cow;
use std::ops::Range;

use bytemuck::Pod;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cpu_backend::CpuDevice;
#[cfg(feature = "candle-cuda")]
use candle_core::cuda_backend::{CudaDType, cudarc::driver::DeviceRepr};
use candle_core::{
    CpuStorage, Error, Layout, Result, Shape, Storage, StorageRef, Tensor, WithDType,
};
use flashrnn::Element;

/// A float type that both flashrnn and candle support, together with its wide type.
pub(crate) trait Number: Element<Wide: CandleType> + CandleType {}
impl<T: Element<Wide: CandleType> + CandleType> Number for T {}

/// An element type of candle's tensors on every device that this crate supports.
#[cfg(not(feature = "candle-cuda"))]
pub(crate) trait CandleType: WithDType + Pod {}
#[cfg(not(feature = "candle-cuda"))]
impl<T: WithDType + Pod> CandleType for T {}

/// An element type of candle's tensors on every device that this crate supports.
#[cfg(feature = "candle-cuda")]
pub(crate) trait CandleType: WithDType + Pod + CudaDType + DeviceRepr {}
#[cfg(feature = "candle-cuda")]
impl<T: WithDType + Pod + CudaDType + DeviceRepr> CandleType for T {}

/// Checks a tensor's shape.
pub(crate) fn check(name: &'static str, tensor: &Tensor, want: &[usize]) -> Result<()> {
    if tensor.dims() == want {
        return Ok(());
    }
    let (got, want) = (tensor.dims().to_vec(), want.to_vec());
    Err(Error::wrap(flashrnn::Error::Shape { tensor: name, got, want }))
}

/// A tensor whose storage is locked for reading.
pub(crate) struct Locked<'a> {
    pub storage: StorageRef<'a>,
    pub layout: Cow<'a, Layout>,
}

impl<'a> Locked<'a> {
    pub fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout: Cow::Borrowed(layout) }
    }

    /// Locks the first `len` elements of the storage of `tensor`, which may be more than the
    /// tensor's own.
    pub fn stored(tensor: &'a Tensor, len: usize) -> Self {
        let (storage, _) = tensor.storage_and_layout();
        Self { storage, layout: Cow::Owned(Layout::contiguous(len)) }
    }

    /// Returns where in the storage the elements `range` of a contiguous tensor are.
    pub fn range(&self, range: Range<usize>) -> Result<Range<usize>> {
        match self.layout.contiguous_offsets() {
            Some((start, end)) if start + range.end <= end => {
                Ok(start + range.start..start + range.end)
            }
            Some(_) => Err(Error::msg("flashrnn: a part exceeds its tensor")),
            None => Err(Error::msg("flashrnn: a tensor is not contiguous")),
        }
    }

    pub fn len(&self) -> usize {
        self.layout.shape().elem_count()
    }

    /// Returns elements of a contiguous tensor in host memory.
    pub fn slice<P: WithDType>(&self, range: Range<usize>) -> Result<&[P]> {
        let Storage::Cpu(storage) = &*self.storage else { return Err(elsewhere()) };
        let all = storage.as_slice::<P>()?;
        all.get(self.range(range)?)
            .ok_or_else(|| Error::msg("flashrnn: a tensor exceeds its storage"))
    }
}

/// Makes the error for a tensor that is not where its call is.
pub(crate) fn elsewhere() -> Error {
    Error::msg("flashrnn: a tensor is on another device than its call")
}

/// Makes a tensor that is not connected to any variable.
pub(crate) fn plain(storage: Storage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(storage, shape, candle_core::op::BackpropOp::none(), false)
}

/// Multiplies two matrices of the same type.
pub(crate) fn matmul(a: &Tensor, b: &Tensor) -> Result<Storage> {
    let ((m, k), (_, n)) = (a.dims2()?, b.dims2()?);
    let (a, b) = (Locked::new(a), Locked::new(b));
    match (&*a.storage, &*b.storage) {
        (Storage::Cpu(x), Storage::Cpu(y)) => {
            x.matmul(y, (1, m, n, k), &a.layout, &b.layout).map(Storage::Cpu)
        }
        (Storage::Cuda(x), Storage::Cuda(y)) => {
            x.matmul(y, (1, m, n, k), &a.layout, &b.layout).map(Storage::Cuda)
        }
        _ => Err(elsewhere()),
    }
}

/// Makes zeros like `tensor`.
pub(crate) fn zeros_like(tensor: &Tensor) -> Result<Storage> {
    let (shape, dtype) = (tensor.shape(), tensor.dtype());
    match &*Locked::new(tensor).storage {
        Storage::Cpu(_) => CpuDevice.zeros_impl(shape, dtype).map(Storage::Cpu),
        Storage::Cuda(storage) => storage.device().zeros_impl(shape, dtype).map(Storage::Cuda),
        Storage::Metal(_) => Err(elsewhere()),
    }
}

/// Copies `parts` to their places in a new storage of `len` elements. Elements outside of them are
/// zero. The parts do not overlap, are contiguous, and are of the type and on the device of `like`.
pub(crate) fn scatter(parts: &[(usize, Tensor)], len: usize, like: &Tensor) -> Result<Storage> {
    let covered = parts.iter().map(|(_, part)| part.elem_count()).sum::<usize>() == len;
    let (shape, dtype) = (Shape::from(len), like.dtype());
    match &*Locked::new(like).storage {
        Storage::Cpu(_) => {
            let out = CpuDevice.zeros_impl(&shape, dtype)?;
            fill(out, parts, |storage| match storage {
                Storage::Cpu(storage) => Ok(storage),
                _ => Err(elsewhere()),
            })
            .map(Storage::Cpu)
        }
        Storage::Cuda(storage) => {
            let out = if covered {
                // SAFETY: the parts cover every element.
                unsafe { storage.device().alloc_uninit(&shape, dtype)? }
            } else {
                storage.device().zeros_impl(&shape, dtype)?
            };
            fill(out, parts, |storage| match storage {
                Storage::Cuda(storage) => Ok(storage),
                _ => Err(elsewhere()),
            })
            .map(Storage::Cuda)
        }
        Storage::Metal(_) => Err(elsewhere()),
    }
}

/// Copies `parts` to their places in `out`.
fn fill<S: BackendStorage>(
    mut out: S,
    parts: &[(usize, Tensor)],
    of: fn(&Storage) -> Result<&S>,
) -> Result<S> {
    for (offset, part) in parts {
        let part = Locked::new(part);
        of(&part.storage)?.copy_strided_src(&mut out, *offset, &part.layout)?;
    }
    Ok(out)
}

/// Hashes up to 64 evenly spaced elements of a tensor in host memory, to detect that it was
/// overwritten. Returns `None` for a tensor that is not contiguous or is elsewhere.
pub(crate) fn fingerprint(tensor: &Tensor) -> Option<u64> {
    let tensor = Locked::new(tensor);
    match &*tensor.storage {
        Storage::Cpu(CpuStorage::F32(values)) => sample(values, &tensor.layout),
        Storage::Cpu(CpuStorage::F64(values)) => sample(values, &tensor.layout),
        Storage::Cpu(CpuStorage::F16(values)) => sample(values, &tensor.layout),
        Storage::Cpu(CpuStorage::BF16(values)) => sample(values, &tensor.layout),
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
pub(crate) fn check_unchanged(name: &str, before: Option<u64>, tensor: &Tensor) -> Result<()> {
    if fingerprint(tensor) == before {
        return Ok(());
    }
    Err(Error::msg(format!(
        "{name} was changed in place between the forward pass and the backward pass, which needs it"
    )))
}
