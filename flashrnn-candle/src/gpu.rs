//! candle's CUDA devices: backends on them, and views of their memory.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop, result,
};
use candle_core::{CudaDevice, CudaStorage, Error, Result, Storage};
use flashrnn::any::AnyBuffer;
use flashrnn::cuda::{View, ViewMut};
use flashrnn::{AnyBackend, Cuda};

use crate::storage::{CandleType, Locked, elsewhere};

/// The number of devices whose backends are kept.
const CAPACITY: usize = 16;

/// The backends of the most recently used devices, from least to most recently used.
static GPUS: Mutex<Vec<Arc<Gpu>>> = Mutex::new(Vec::new());

/// The next device's number.
static IDS: AtomicUsize = AtomicUsize::new(1);

/// `CU_STREAM_PER_THREAD`, the stream of devices made by `Device::new_cuda`.
const PER_THREAD_STREAM: usize = 2;

/// A CUDA device of candle's and the backend that works on it.
///
/// The backend works on the device's stream. If that is CUDA's per-thread stream, which is another
/// stream on every thread, the backend has a stream of its own: each call first makes it wait for
/// the caller's stream, and then makes the caller's stream wait for it.
pub(crate) struct Gpu {
    id: usize,
    device: CudaDevice,
    /// The stream of candle's operations.
    stream: Arc<CudaStream>,
    /// The backend's stream, if it is another one.
    own_stream: Option<Arc<CudaStream>>,
    backend: AnyBackend,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Returns the backend of `device`, which is made at the first call.
    pub fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = gpus.iter().rposition(|gpu| gpu.device.id() == device.id()) {
            gpus[i..].rotate_left(1);
        } else {
            let made = Arc::new(Self::new(device, &gpus).map_err(Error::wrap)?);
            if gpus.len() >= CAPACITY {
                gpus.remove(0);
            }
            gpus.push(made);
        }
        gpus.last().cloned().ok_or_else(|| Error::msg("flashrnn: no device"))
    }

    /// Makes the backend of `device`. Backends of the same GPU share their kernels and memory.
    fn new(device: &CudaDevice, others: &[Arc<Self>]) -> flashrnn::Result<Self> {
        let stream = device.cuda_stream();
        let same_gpu = |other: &&Arc<Self>| other.stream.context() == stream.context();
        let other = others.iter().find(same_gpu).map(|other| &other.backend);
        let per_thread = stream.cu_stream() as usize == PER_THREAD_STREAM;
        let cuda = match (other, per_thread) {
            (Some(AnyBackend::Cuda(other)), true) => other.with_new_stream()?,
            (Some(AnyBackend::Cuda(other)), false) => other.with_stream(stream.clone())?,
            (_, true) => Cuda::with_device(stream.context().ordinal())?,
            (_, false) => Cuda::on_stream(stream.clone())?,
        };
        Ok(Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            device: device.clone(),
            stream,
            own_stream: per_thread.then(|| cuda.stream().clone()),
            backend: AnyBackend::Cuda(cuda),
        })
    }

    pub fn id(&self) -> usize {
        self.id
    }

    pub fn backend(&self) -> &AnyBackend {
        &self.backend
    }

    /// Runs `enqueue`, which calls the backend, in order with candle's operations.
    pub fn run<R>(&self, enqueue: impl FnOnce() -> Result<R>) -> Result<R> {
        let Some(own) = &self.own_stream else { return enqueue() };
        own.join(&self.stream).map_err(Error::wrap)?;
        let result = enqueue();
        // Also if `enqueue` failed, because what it enqueued before still runs.
        self.stream.join(own).map_err(Error::wrap)?;
        result
    }

    /// Borrows elements of a contiguous tensor for reading, as elements of the same size.
    pub fn borrow<'a, P: CandleType, Q>(
        &'a self,
        tensor: &'a Locked<'a>,
        range: Range<usize>,
    ) -> Result<Borrowed<'a, Q>> {
        const { assert!(size_of::<P>() == size_of::<Q>()) };
        let range = tensor.range(range)?;
        let Storage::Cuda(storage) = &*tensor.storage else { return Err(elsewhere()) };
        let slice = storage.as_cuda_slice::<P>()?;
        if range.end > slice.len() {
            return Err(Error::msg("flashrnn: a tensor exceeds its storage"));
        }
        let (ptr, order) = slice.device_ptr(&self.stream);
        let ptr = ptr + (range.start * size_of::<Q>()) as u64;
        Ok(Borrowed { ptr, len: range.len(), _order: order, element: PhantomData })
    }

    /// Allocates uninitialised memory for a tensor.
    pub fn alloc<P: CandleType>(&self, len: usize) -> Result<CudaSlice<P>> {
        // CUDA allocates no memory of 0 bytes.
        // SAFETY: whoever allocates memory makes a call write all of it.
        unsafe { self.device.alloc(len.max(1)) }
    }

    /// Allocates memory of the backend whose values are unspecified.
    pub fn scratch<P: Pod + Send + Sync>(&self, len: usize) -> Result<AnyBuffer<P>> {
        let AnyBackend::Cuda(cuda) = &self.backend else { return Err(elsewhere()) };
        cuda.alloc_uninit(len).map(AnyBuffer::Cuda).map_err(Error::wrap)
    }

    /// Borrows the parts of `slice` for writing.
    pub fn borrow_mut<'a, P, const N: usize>(
        &'a self,
        slice: &'a mut CudaSlice<P>,
        lens: [usize; N],
    ) -> BorrowedMut<'a, P> {
        let (ptr, order) = slice.device_ptr_mut(&self.stream);
        BorrowedMut { ptr, lens: lens.into(), _order: order, element: PhantomData }
    }

    /// Makes the storage of a tensor.
    pub fn storage<P: CandleType>(&self, slice: CudaSlice<P>) -> Storage {
        Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, self.device.clone()))
    }

    /// Copies elements of a contiguous tensor to a buffer of the backend.
    pub fn copy_in<P: CandleType>(
        &self,
        tensor: &Locked<'_>,
        range: Range<usize>,
    ) -> Result<AnyBuffer<P>> {
        let source = self.borrow::<P, P>(tensor, range)?;
        let mut buffer = self.scratch::<P>(source.len)?;
        if let AnyBuffer::Cuda(buffer) = &mut buffer {
            self.run(|| self.copy(source.view(), &buffer.view_mut()))?;
        }
        Ok(buffer)
    }

    /// Copies a buffer of `len` elements to the storage of a tensor.
    pub fn copy_out<P: CandleType>(&self, buffer: &AnyBuffer<P>, len: usize) -> Result<Storage> {
        let AnyBuffer::Cuda(buffer) = buffer else { return Err(elsewhere()) };
        let mut slice = self.alloc::<P>(len)?;
        {
            let mut borrowed = self.borrow_mut(&mut slice, [len]);
            self.run(|| borrowed.views().try_for_each(|view| self.copy(buffer.view(), &view)))?;
        }
        Ok(self.storage(slice))
    }

    /// Enqueues a copy between views of the same length.
    pub fn copy<P>(&self, from: View<'_, P>, to: &ViewMut<'_, P>) -> Result<()> {
        if from.len() != to.len() {
            return Err(Error::msg("flashrnn: a copy between different lengths"));
        }
        let bytes = from.len() * size_of::<P>();
        if bytes == 0 {
            return Ok(());
        }
        let stream = self.own_stream.as_ref().unwrap_or(&self.stream);
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        // SAFETY: both views have `bytes` bytes, which stay allocated until the copy has run: a
        // buffer is freed in the order of this stream, and candle's memory in that of a stream that
        // waits for it.
        unsafe { result::memcpy_dtod_async(to.ptr(), from.ptr(), bytes, stream.cu_stream()) }
            .map_err(Error::wrap)
    }
}

/// Elements of a tensor, borrowed for reading. When it is dropped, after the call that reads them,
/// candle records that they were read.
pub(crate) struct Borrowed<'a, P> {
    ptr: u64,
    len: usize,
    _order: SyncOnDrop<'a>,
    element: PhantomData<&'a [P]>,
}

impl<P> Borrowed<'_, P> {
    pub fn view(&self) -> View<'_, P> {
        // SAFETY: the tensor's storage is borrowed and has these elements. It is freed in the order
        // of candle's stream, with which `Gpu::run` orders every call that uses the view.
        unsafe { View::from_raw(self.ptr, self.len) }
    }
}

/// Memory borrowed for writing, in parts. When it is dropped, after the call that writes it, candle
/// records that it was written.
pub(crate) struct BorrowedMut<'a, P> {
    ptr: u64,
    lens: Vec<usize>,
    _order: SyncOnDrop<'a>,
    element: PhantomData<&'a mut [P]>,
}

impl<P: Pod> BorrowedMut<'_, P> {
    /// Returns the parts.
    pub fn views(&mut self) -> impl Iterator<Item = ViewMut<'_, P>> {
        let mut ptr = self.ptr;
        self.lens.iter().map(move |&len| {
            let start = ptr;
            ptr += (len * size_of::<P>()) as u64;
            // SAFETY: the memory is borrowed for writing and has the sum of all lengths. The parts
            // do not overlap. See also `Borrowed::view`.
            unsafe { ViewMut::from_raw(start, len) }
        })
    }
}
