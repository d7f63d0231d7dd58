//! Where the tensors of a call are, and the backend that computes there.

use std::ops::Range;

use bytemuck::Pod;
use candle_core::{Device, DeviceLocation, Error, Result, Storage, Tensor};
use flashrnn::any::{AnyBuffer, AnyView, AnyViewMut};
use flashrnn::{AnyBackend, Backend};

use crate::storage::{CandleType, Locked};

/// Where the tensors of a call are, and the backend that computes there.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// On candle's CPU device. The CPU backend works on candle's memory, a GPU gets copies.
    Host(AnyBackend),
    /// On a CUDA device of candle's, in whose memory the backend works.
    #[cfg(feature = "candle-cuda")]
    Cuda(std::sync::Arc<crate::gpu::Gpu>),
}

impl Place {
    /// Returns the place of `tensors`, which must be on the same device. `backend` computes if that
    /// is the CPU.
    pub fn of<'a>(
        backend: &AnyBackend,
        tensors: impl IntoIterator<Item = (&'static str, &'a Tensor)>,
    ) -> Result<Self> {
        match check_devices(tensors)? {
            #[cfg(feature = "candle-cuda")]
            Device::Cuda(device) => crate::gpu::Gpu::of(&device).map(Self::Cuda),
            _ => Ok(Self::Host(backend.clone())),
        }
    }

    pub fn backend(&self) -> &AnyBackend {
        match self {
            Self::Host(backend) => backend,
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(gpu) => gpu.backend(),
        }
    }

    /// Returns whether the backend works in candle's memory.
    pub fn is_in_place(&self) -> bool {
        match self {
            Self::Host(backend) => matches!(backend, AnyBackend::Cpu(_)),
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(_) => true,
        }
    }

    /// Returns a number that is unique among the backends of one [`Recurrence`](crate::Recurrence).
    pub fn id(&self) -> usize {
        match self {
            Self::Host(_) => 0,
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(gpu) => gpu.id(),
        }
    }

    /// Runs `enqueue`, which calls the backend, in order with candle's operations. Inputs and
    /// memory are borrowed before and until after.
    pub fn run<R>(&self, enqueue: impl FnOnce() -> Result<R>) -> Result<R> {
        match self {
            Self::Host(_) => enqueue(),
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(gpu) => gpu.run(enqueue),
        }
    }

    /// Makes elements of a contiguous tensor readable by the backend.
    pub fn input<'a, P: CandleType>(
        &'a self,
        tensor: &'a Locked<'a>,
        range: Range<usize>,
    ) -> Result<Input<'a, P>> {
        match self {
            Self::Host(backend) => stage(backend, tensor.slice(range)?),
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(gpu) => gpu.borrow::<P, P>(tensor, range).map(Input::Borrowed),
        }
    }

    /// Makes lengths (U32, within the range of i32) readable by the backend.
    pub fn lengths<'a>(&'a self, tensor: &'a Locked<'a>) -> Result<Input<'a, i32>> {
        let range = 0..tensor.len();
        match self {
            Self::Host(backend) => {
                stage(backend, bytemuck::cast_slice(tensor.slice::<u32>(range)?))
            }
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(gpu) => gpu.borrow::<u32, i32>(tensor, range).map(Input::Borrowed),
        }
    }

    /// Allocates memory for the values of a tensor, in `N` parts of the given lengths.
    pub fn alloc<P: CandleType, const N: usize>(&self, lens: [usize; N]) -> Result<Memory<P, N>> {
        match self {
            Self::Host(backend) => {
                let mut parts = Vec::with_capacity(N);
                for len in lens {
                    parts.push(backend.alloc(len).map_err(Error::wrap)?);
                }
                Ok(Memory::Host(parts))
            }
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(gpu) => Ok(Memory::Cuda(gpu.alloc(lens.iter().sum())?, lens)),
        }
    }

    /// Allocates memory of the backend whose values are unspecified.
    pub fn scratch<P: CandleType>(&self, len: usize) -> Result<AnyBuffer<P>> {
        match self {
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(gpu) => gpu.scratch(len),
            Self::Host(backend) => backend.alloc(len).map_err(Error::wrap),
        }
    }

    /// Borrows memory for one call.
    pub fn borrow_mut<'a, P: CandleType, const N: usize>(
        &'a self,
        memory: &'a mut Memory<P, N>,
    ) -> BorrowedMut<'a, P> {
        match memory {
            Memory::Host(parts) => BorrowedMut::Host(parts),
            #[cfg(feature = "candle-cuda")]
            Memory::Cuda(slice, lens) => match self {
                Self::Cuda(gpu) => BorrowedMut::Cuda(gpu.borrow_mut(slice, *lens)),
                Self::Host(_) => unreachable!("a call allocates where it runs"),
            },
        }
    }

    /// Turns memory that calls have written into the storage of a tensor. Copies only from a GPU to
    /// the CPU.
    pub fn storage<P: CandleType, const N: usize>(&self, memory: Memory<P, N>) -> Result<Storage> {
        match memory {
            Memory::Host(parts) => {
                let mut values = Vec::new();
                for part in parts {
                    let part = match part {
                        AnyBuffer::Cpu(part) => part,
                        other => self.backend().download(other.view()).map_err(Error::wrap)?,
                    };
                    if values.is_empty() { values = part } else { values.extend(part) }
                }
                Ok(Storage::Cpu(P::to_cpu_storage_owned(values)))
            }
            #[cfg(feature = "candle-cuda")]
            Memory::Cuda(slice, _) => match self {
                Self::Cuda(gpu) => Ok(gpu.storage(slice)),
                Self::Host(_) => unreachable!("a call allocates where it runs"),
            },
        }
    }

    /// Copies a tensor of type `P` to a buffer of the backend.
    pub fn upload<P: CandleType>(&self, tensor: &Tensor) -> Result<AnyBuffer<P>> {
        let tensor = tensor.contiguous()?;
        let tensor = Locked::new(&tensor);
        let range = 0..tensor.len();
        match self {
            Self::Host(backend) => backend.upload(tensor.slice(range)?).map_err(Error::wrap),
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(gpu) => gpu.copy_in(&tensor, range),
        }
    }

    /// Copies a buffer of the backend, of `len` elements, to the storage of a tensor.
    pub fn copy<P: CandleType>(&self, buffer: &AnyBuffer<P>, len: usize) -> Result<Storage> {
        match self {
            Self::Host(backend) => {
                let values = backend.download(buffer.view()).map_err(Error::wrap)?;
                debug_assert_eq!(values.len(), len);
                Ok(Storage::Cpu(P::to_cpu_storage_owned(values)))
            }
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(gpu) => gpu.copy_out(buffer, len),
        }
    }
}

/// Checks that all tensors are on one device that this crate supports, and returns it.
pub(crate) fn check_devices<'a>(
    tensors: impl IntoIterator<Item = (&'static str, &'a Tensor)>,
) -> Result<Device> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let group = |tensor: &Tensor| {
        tensors.iter().position(|(_, other)| tensor.device().same_device(other.device()))
    };
    let located = tensors.iter().map(|(name, tensor)| {
        let device = tensor.device();
        (*name, device.location(), group(tensor))
    });
    match devices_error(&located.collect::<Vec<_>>()) {
        Some(error) => Err(Error::msg(error)),
        None => Ok(tensors.first().map_or(Device::Cpu, |(_, tensor)| tensor.device().clone())),
    }
}

/// Describes the first tensors that are on different devices or on one that is not supported. Each
/// tensor has the index of the first one on the same device.
fn devices_error(tensors: &[(&'static str, DeviceLocation, Option<usize>)]) -> Option<String> {
    let word = |location: &DeviceLocation| match location {
        DeviceLocation::Cpu => "the CPU".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("CUDA device {gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("Metal device {gpu_id}"),
    };
    let (first, location, group) = tensors.first()?;
    if let Some((name, other, _)) = tensors.iter().find(|tensor| tensor.2 != *group) {
        let places = format!("{first} is on {} and {name} is on {}", word(location), word(other));
        return Some(if location == other {
            format!(
                "{places}, but they were made with two values of candle's Device, which do not \
                 share a stream; clone one instead"
            )
        } else {
            format!("{places}, wanted one device for all tensors of a call")
        });
    }
    let advice = match location {
        DeviceLocation::Cpu => return None,
        DeviceLocation::Cuda { .. } if cfg!(feature = "candle-cuda") => return None,
        DeviceLocation::Cuda { .. } => ", or the feature candle-cuda",
        DeviceLocation::Metal { .. } => "",
    };
    let place = word(location);
    Some(format!("{first} is on {place}; flashrnn-candle needs tensors on the CPU{advice}"))
}

/// Elements that a backend can read.
pub(crate) enum Input<'a, P: Pod + Send + Sync> {
    InPlace(&'a [P]),
    Copied(AnyBuffer<P>),
    #[cfg(feature = "candle-cuda")]
    Borrowed(crate::gpu::Borrowed<'a, P>),
}

impl<P: Pod + Send + Sync> Input<'_, P> {
    pub fn view(&self) -> AnyView<'_, P> {
        match self {
            Self::InPlace(data) => AnyView::Cpu(data),
            Self::Copied(buffer) => buffer.view(),
            #[cfg(feature = "candle-cuda")]
            Self::Borrowed(borrowed) => AnyView::Cuda(borrowed.view()),
        }
    }
}

/// Makes host data readable by the backend.
fn stage<'a, P: Pod + Send + Sync>(backend: &AnyBackend, data: &'a [P]) -> Result<Input<'a, P>> {
    match backend {
        AnyBackend::Cpu(_) => Ok(Input::InPlace(data)),
        other => other.upload(data).map(Input::Copied).map_err(Error::wrap),
    }
}

/// Memory for the values of a tensor, in `N` parts that calls write.
pub(crate) enum Memory<P: CandleType, const N: usize> {
    /// In the backend's memory.
    Host(Vec<AnyBuffer<P>>),
    /// In candle's memory, with the lengths of the parts.
    #[cfg(feature = "candle-cuda")]
    Cuda(flashrnn::cuda::cudarc::driver::CudaSlice<P>, [usize; N]),
}

/// Memory borrowed for one call.
pub(crate) enum BorrowedMut<'a, P: Pod + Send + Sync> {
    Host(&'a mut [AnyBuffer<P>]),
    #[cfg(feature = "candle-cuda")]
    Cuda(crate::gpu::BorrowedMut<'a, P>),
}

impl<P: Pod + Send + Sync> BorrowedMut<'_, P> {
    /// Returns the parts of the memory.
    pub fn views(&mut self) -> impl Iterator<Item = AnyViewMut<'_, P>> {
        let views: Vec<_> = match self {
            Self::Host(parts) => parts.iter_mut().map(AnyBuffer::view_mut).collect(),
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(borrowed) => borrowed.views().map(AnyViewMut::Cuda).collect(),
        };
        views.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_on_two_devices_are_named() {
        let cuda = |gpu_id| DeviceLocation::Cuda { gpu_id };
        let error = |tensors: &[_]| devices_error(tensors).unwrap_or_default();
        let two = error(&[("x", cuda(1), Some(0)), ("w", DeviceLocation::Cpu, Some(1))]);
        assert!(two.starts_with("x is on CUDA device 1 and w is on the CPU, wanted one"), "{two}");
        let handles = error(&[("x", cuda(0), Some(0)), ("w", cuda(0), Some(1))]);
        assert!(handles.contains("two values of candle's Device"), "{handles}");
        let metal = DeviceLocation::Metal { gpu_id: 0 };
        let metal = error(&[("wx", metal, Some(0)), ("r", metal, Some(0))]);
        assert!(metal.starts_with("wx is on Metal device 0; flashrnn-candle needs"), "{metal}");
        assert_eq!(devices_error(&[("x", DeviceLocation::Cpu, Some(0))]), None);
    }
}
