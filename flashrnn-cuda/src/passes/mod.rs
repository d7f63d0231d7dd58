//! The passes of a plan and their parts: their kernels, their scratch memory and their launches.
//! [`Common`] holds what all of them need.

pub(crate) mod address_table;
pub(crate) mod backward;
pub(crate) mod forward;
pub(crate) mod fused;
pub(crate) mod grid;
pub(crate) mod pack;
pub(crate) mod recompute;
pub(crate) mod time_loop;
pub(crate) mod weight_grad;

use std::ffi::c_void;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::CUstream;
use flashrnn_core::{Dtype, Element, Error, Layout, Problem, Result, Save, Shapes};

use crate::call::{Address, Gates, Sizes};
use crate::device::Device;
use crate::device::blas::BlasScratch;
use crate::kernels::launch::{Kernel, Launch};
use crate::memory::scratch::Bump;
use crate::memory::{View, ViewMut};
use crate::select::step;

/// Holds what all passes of a plan share: the device, the problem and its sizes.
pub(crate) struct Common {
    pub device: Arc<Device>,
    pub problem: Problem,
    pub shapes: Shapes,
    /// The sizes as passed to the kernels.
    pub sizes: Sizes,
    /// The type `T`.
    pub element: Dtype,
    /// Bytes per element of `T`.
    pub bytes: usize,
    /// D rounded up to whole chunks of the kernels.
    pub depth: usize,
}

impl Common {
    /// # Errors
    /// [`Error::Unsupported`] if the kernels cannot represent the sizes.
    pub(crate) fn new<T: Element>(
        device: &Arc<Device>,
        problem: &Problem,
        shapes: &Shapes,
    ) -> Result<Self> {
        let bytes = size_of::<T>();
        let depth = step::depth(shapes.head_dim, bytes);
        Ok(Self {
            device: device.clone(),
            problem: problem.clone(),
            shapes: shapes.clone(),
            sizes: sizes(problem, shapes, depth)?,
            element: T::DTYPE,
            bytes,
            depth,
        })
    }

    /// Returns the stream that the passes are enqueued on.
    pub(crate) fn stream(&self) -> CUstream {
        self.device.stream.cu_stream()
    }

    /// Returns whether the backward pass recomputes the gates.
    pub(crate) fn recomputes(&self) -> bool {
        self.problem.options.save == Save::Recompute
    }

    /// Returns the addresses of the two parts of a tensor of all gates: `[tokens, Gx, N, D]`, then
    /// `[tokens, G - Gx, N, D]`. Interleaved gates (`select::alignment::interleaves`) have no parts
    /// and start at the first address.
    pub(crate) fn gates_at(&self, address: Address) -> Gates {
        let external =
            self.shapes.tokens() * self.shapes.external * self.shapes.units() * self.bytes;
        Gates { external: address, inner: address + external as Address }
    }

    /// Returns the addresses of the wide states and the wide gates in `saved.wide`:
    /// `[WIDE, tokens, N, D]`, followed by `[WIDE_GATES, tokens, N, D]`.
    pub(crate) fn wide_at(&self, address: Address) -> (Address, Address) {
        let states =
            self.shapes.wide.len() * self.shapes.tokens() * self.shapes.units() * size_of::<f32>();
        (address, address + states as Address)
    }

    /// Returns the number of elements that a forward step hands to the next: h `[B, N, depth]`.
    pub(crate) fn exchanged_h(&self) -> usize {
        self.shapes.batch * self.shapes.heads * self.depth
    }

    /// Allocates cuBLAS's scratch memory.
    pub(crate) fn blas_scratch(&self, bump: &mut Bump) -> BlasScratch {
        let bytes = BlasScratch::bytes(self.device.context.arch);
        BlasScratch { address: bump.take::<u8>(bytes), bytes }
    }

    /// Enqueues a kernel whose threads stride over `len` items.
    ///
    /// # Safety
    /// Same as [`Kernel::launch`].
    pub(crate) unsafe fn launch_strided(
        &self,
        stream: CUstream,
        kernel: &Kernel,
        len: usize,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let max_blocks = self.device.context.multiprocessors * 16;
        let blocks = len.div_ceil(256).min(max_blocks);
        // SAFETY: guaranteed by the caller.
        unsafe { kernel.launch(stream, &Launch::new([blocks as u32, 1, 1], 256), arguments) }
    }
}

/// Returns the sizes of a problem as passed to the kernels.
fn sizes(problem: &Problem, shapes: &Shapes, depth: usize) -> Result<Sizes> {
    let fits = |option: &'static str, n: usize| {
        i32::try_from(n).map_err(|_| Error::Unsupported {
            backend: "cuda",
            what: format!("{option} {n}"),
            why: "at most 2147483647".into(),
        })
    };
    // In the backward pass, k runs over all recurrent gates.
    fits("Gr times head_dim", shapes.recurrent.saturating_mul(depth))?;
    Ok(Sizes {
        batch: fits("batch", shapes.batch)?,
        time: fits("time", shapes.time)?,
        heads: fits("heads", shapes.heads)?,
        head_dim: fits("head_dim", shapes.head_dim)?,
        depth: fits("head_dim", depth)?,
        time_major: (shapes.layout == Layout::TimeMajor).into(),
        reverse: problem.options.reverse.into(),
    })
}

/// Returns a clip as passed to the kernels, where infinity means none.
pub(crate) fn clip(v: Option<f64>) -> f32 {
    v.map_or(f32::INFINITY, |v| v as f32)
}

/// Returns the address of an optional input, or 0 if there is none.
pub(crate) fn address<P: Pod + Send + Sync>(view: &Option<View<'_, P>>) -> Address {
    view.as_ref().map_or(0, |view| view.ptr())
}

/// Returns the address of an optional output, or 0 if there is none.
pub(crate) fn address_mut<P: Pod + Send + Sync>(view: &Option<ViewMut<'_, P>>) -> Address {
    view.as_ref().map_or(0, |view| view.ptr())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashrnn_core::Lstm;

    #[test]
    fn sizes_beyond_32_bits_are_refused_where_a_plan_is_made() {
        let problem = Problem::new(1 << 31, 1, 1, 1);
        let refused = sizes(&problem, &problem.shapes::<Lstm>().unwrap(), 16);
        assert!(
            matches!(refused, Err(Error::Unsupported { what, .. }) if what == "batch 2147483648")
        );
    }
}
