//! Transfers between host memory and a backend: in place on the CPU, by copies on GPUs.

use bytemuck::Pod;
use candle_core::{Error, Result};
use flashrnn::any::{AnyBuffer, AnyView};
use flashrnn::{AnyBackend, Backend};

/// Host data in memory that a backend can read.
pub(crate) enum Staged<'a, P: Pod + Send + Sync> {
    InPlace(&'a [P]),
    Copied(AnyBuffer<P>),
}

impl<P: Pod + Send + Sync> Staged<'_, P> {
    pub fn view(&self) -> AnyView<'_, P> {
        match self {
            Self::InPlace(data) => AnyView::Cpu(data),
            Self::Copied(buffer) => buffer.view(),
        }
    }
}

/// Makes `data` readable by the backend.
pub(crate) fn stage<'a, P: Pod + Send + Sync>(
    backend: &AnyBackend,
    data: &'a [P],
) -> Result<Staged<'a, P>> {
    match backend {
        AnyBackend::Cpu(_) => Ok(Staged::InPlace(data)),
        other => other.upload(data).map(Staged::Copied).map_err(Error::wrap),
    }
}

/// Moves a buffer's elements to a `Vec`; copies only from a GPU.
pub(crate) fn into_vec<P: Pod + Send + Sync>(
    backend: &AnyBackend,
    buffer: AnyBuffer<P>,
) -> Result<Vec<P>> {
    match buffer {
        AnyBuffer::Cpu(values) => Ok(values),
        other => backend.download(other.view()).map_err(Error::wrap),
    }
}
