//! How candle's tensors, which lie in host memory, reach a backend and come back.

use std::borrow::Cow;

use bytemuck::Pod;
use flashrnn::{Backend, Cpu, Result};

/// A backend that takes host memory: in place, as [`Cpu`] does, or by copies to its device and back.
pub trait Bridge: Backend {
    /// Host data where the backend can read it.
    type Input<'a, P: Pod + Send + Sync>;

    /// Brings `data` there.
    ///
    /// # Errors
    /// [`flashrnn::Error::OutOfMemory`], [`flashrnn::Error::Device`]
    fn input<'a, P: Pod + Send + Sync>(&self, data: &'a [P]) -> Result<Self::Input<'a, P>>;

    /// What was brought there, for a call.
    fn read<'a, P: Pod + Send + Sync>(&self, input: &'a Self::Input<'_, P>) -> Self::View<'a, P>;

    /// The first `len` elements of a buffer that has as many.
    ///
    /// # Errors
    /// [`flashrnn::Error::Shape`], [`flashrnn::Error::Device`]
    fn look<'a, P: Pod + Send + Sync>(&self, buffer: &'a Self::Buffer<P>, len: usize)
    -> Result<Cow<'a, [P]>>;

    /// A buffer's elements.
    ///
    /// # Errors
    /// [`flashrnn::Error::Device`]
    fn take<P: Pod + Send + Sync>(&self, buffer: Self::Buffer<P>) -> Result<Vec<P>>;
}

impl Bridge for Cpu {
    type Input<'a, P: Pod + Send + Sync> = &'a [P];

    fn input<'a, P: Pod + Send + Sync>(&self, data: &'a [P]) -> Result<&'a [P]> {
        Ok(data)
    }

    fn read<'a, P: Pod + Send + Sync>(&self, input: &'a &[P]) -> &'a [P] {
        input
    }

    fn look<'a, P: Pod + Send + Sync>(&self, buffer: &'a Vec<P>, len: usize) -> Result<Cow<'a, [P]>> {
        let short = || flashrnn::Error::Shape { tensor: "buffer", got: vec![buffer.len()], want: vec![len] };
        buffer.get(..len).map(Cow::Borrowed).ok_or_else(short)
    }

    fn take<P: Pod + Send + Sync>(&self, buffer: Vec<P>) -> Result<Vec<P>> {
        Ok(buffer)
    }
}

/// The bridge to a backend with memory of its own: data is copied there and back.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
macro_rules! by_copies {
    ($backend:ty) => {
        impl Bridge for $backend {
            type Input<'a, P: Pod + Send + Sync> = Self::Buffer<P>;

            fn input<P: Pod + Send + Sync>(&self, data: &[P]) -> Result<Self::Buffer<P>> {
                self.upload(data)
            }

            fn read<'a, P: Pod + Send + Sync>(&self, input: &'a Self::Buffer<P>) -> Self::View<'a, P> {
                input.view()
            }

            fn look<'a, P: Pod + Send + Sync>(
                &self,
                buffer: &'a Self::Buffer<P>,
                len: usize,
            ) -> Result<Cow<'a, [P]>> {
                self.download(buffer.view().slice(0..len)?).map(Cow::Owned)
            }

            fn take<P: Pod + Send + Sync>(&self, buffer: Self::Buffer<P>) -> Result<Vec<P>> {
                self.download(buffer.view())
            }
        }
    };
}

#[cfg(feature = "cuda")]
by_copies!(flashrnn::Cuda);
#[cfg(feature = "wgpu")]
by_copies!(flashrnn::Wgpu);
