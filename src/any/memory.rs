//! Buffers and views of any backend, and their conversion to those of a specific backend.

use bytemuck::Pod;
use flashrnn_core::{Backend, Element, Error, Len, Result, SavedMut, SavedRef};

use super::backend::{AnyBackend, each};

/// Memory of any backend for elements of `P`.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyBuffer<P: Pod + Send + Sync> {
    /// On the CPU.
    #[cfg(feature = "cpu")]
    Cpu(Vec<P>),
    /// On an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Buffer<P>),
    /// On a wgpu device.
    #[cfg(feature = "wgpu")]
    Wgpu(crate::wgpu::Buffer<P>),
}

impl<P: Pod + Send + Sync> AnyBuffer<P> {
    /// Borrows the whole buffer for reading.
    #[must_use]
    pub fn view(&self) -> AnyView<'_, P> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu(buffer) => AnyView::Cpu(buffer),
            #[cfg(feature = "cuda")]
            Self::Cuda(buffer) => AnyView::Cuda(buffer.view()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(buffer) => AnyView::Wgpu(buffer.view()),
        }
    }

    /// Borrows the whole buffer for writing.
    #[must_use]
    pub fn view_mut(&mut self) -> AnyViewMut<'_, P> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Cpu(buffer) => AnyViewMut::Cpu(buffer),
            #[cfg(feature = "cuda")]
            Self::Cuda(buffer) => AnyViewMut::Cuda(buffer.view_mut()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(buffer) => AnyViewMut::Wgpu(buffer.view_mut()),
        }
    }
}

/// Memory borrowed for reading, from an [`AnyBuffer`] or as a view of a specific backend.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyView<'a, P: Pod + Send + Sync> {
    /// On the CPU.
    #[cfg(feature = "cpu")]
    Cpu(&'a [P]),
    /// On an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::View<'a, P>),
    /// On a wgpu device.
    #[cfg(feature = "wgpu")]
    Wgpu(crate::wgpu::View<'a, P>),
}

impl<P: Pod + Send + Sync> Clone for AnyView<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Pod + Send + Sync> Copy for AnyView<'_, P> {}

impl<P: Pod + Send + Sync> Len for AnyView<'_, P> {
    fn len(&self) -> usize {
        each!(self, Self(view) => view.len())
    }
}

/// Memory borrowed for writing, from an [`AnyBuffer`] or as a view of a specific backend.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyViewMut<'a, P: Pod + Send + Sync> {
    /// On the CPU.
    #[cfg(feature = "cpu")]
    Cpu(&'a mut [P]),
    /// On an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::ViewMut<'a, P>),
    /// On a wgpu device.
    #[cfg(feature = "wgpu")]
    Wgpu(crate::wgpu::ViewMut<'a, P>),
}

impl<P: Pod + Send + Sync> Len for AnyViewMut<'_, P> {
    fn len(&self) -> usize {
        each!(self, Self(view) => view.len())
    }
}

/// One of the backends of [`AnyBackend`].
pub(super) trait Member: Backend {
    /// Returns the backend's own view, if `view` holds one.
    fn own<'a, P: Pod + Send + Sync>(view: AnyView<'a, P>) -> Option<Self::View<'a, P>>;
    /// Returns the backend's own mutable view, if `view` holds one.
    fn own_mut<'a, P: Pod + Send + Sync>(view: AnyViewMut<'a, P>) -> Option<Self::ViewMut<'a, P>>;
}

macro_rules! member {
    ($feature:literal, $variant:ident) => {
        #[cfg(feature = $feature)]
        impl Member for crate::$variant {
            fn own<'a, P: Pod + Send + Sync>(view: AnyView<'a, P>) -> Option<Self::View<'a, P>> {
                #[allow(irrefutable_let_patterns, reason = "it may be the only backend")]
                if let AnyView::$variant(view) = view { Some(view) } else { None }
            }

            fn own_mut<'a, P: Pod + Send + Sync>(
                view: AnyViewMut<'a, P>,
            ) -> Option<Self::ViewMut<'a, P>> {
                #[allow(irrefutable_let_patterns, reason = "it may be the only backend")]
                if let AnyViewMut::$variant(view) = view { Some(view) } else { None }
            }
        }
    };
}

member!("cpu", Cpu);
member!("cuda", Cuda);
member!("wgpu", Wgpu);

/// Makes the error for a tensor of another backend.
pub(super) fn foreign(tensor: &'static str) -> Error {
    Error::Argument { tensor, why: "belongs to another backend than the plan" }
}

/// Converts a view to one of the backend `B`.
pub(super) fn own<'a, B: Member, P: Pod + Send + Sync>(
    tensor: &'static str,
    view: AnyView<'a, P>,
) -> Result<B::View<'a, P>> {
    B::own(view).ok_or(foreign(tensor))
}

/// Converts a mutable view to one of the backend `B`.
pub(super) fn own_mut<'a, B: Member, P: Pod + Send + Sync>(
    tensor: &'static str,
    view: AnyViewMut<'a, P>,
) -> Result<B::ViewMut<'a, P>> {
    B::own_mut(view).ok_or(foreign(tensor))
}

/// Converts an optional view to one of the backend `B`.
pub(super) fn maybe<'a, B: Member, P: Pod + Send + Sync>(
    tensor: &'static str,
    view: Option<AnyView<'a, P>>,
) -> Result<Option<B::View<'a, P>>> {
    view.map(|view| own::<B, P>(tensor, view)).transpose()
}

/// Converts an optional mutable view to one of the backend `B`.
pub(super) fn maybe_mut<'a, B: Member, P: Pod + Send + Sync>(
    tensor: &'static str,
    view: Option<AnyViewMut<'a, P>>,
) -> Result<Option<B::ViewMut<'a, P>>> {
    view.map(|view| own_mut::<B, P>(tensor, view)).transpose()
}

/// Converts the views of the memory that a forward pass wrote to views of the backend `B`.
pub(super) fn saved<'a, B: Member, T: Element>(
    saved: SavedRef<'a, AnyBackend, T>,
) -> Result<SavedRef<'a, B, T>> {
    Ok(SavedRef {
        gates: own::<B, T>("saved", saved.gates)?,
        wide: own::<B, T::Wide>("saved", saved.wide)?,
    })
}

/// Converts the mutable views of the memory that a forward pass writes to views of the backend `B`.
pub(super) fn saved_mut<'a, B: Member, T: Element>(
    saved: SavedMut<'a, AnyBackend, T>,
) -> Result<SavedMut<'a, B, T>> {
    Ok(SavedMut {
        gates: own_mut::<B, T>("saved", saved.gates)?,
        wide: own_mut::<B, T::Wide>("saved", saved.wide)?,
    })
}
