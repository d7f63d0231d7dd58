//! Scratch memory of a call: one piece, from the caller or the pool, cut into the buffers that the
//! passes need.

use flashrnn_core::{Error, Result, Workspace};

use crate::call::{Address, Gates};
use crate::device::blas::BlasScratch;
use crate::engine::{Engine, recompute};
use crate::memory::{Buffer, ViewMut};

/// Alignment in bytes of a workspace and of every buffer cut from it.
const ALIGN: usize = 256;

/// Cuts buffers from a piece of memory, from its front.
pub(crate) struct Bump {
    base: Address,
    used: usize,
    peak: usize,
}

impl Bump {
    fn new(base: Address) -> Self {
        Self { base, used: 0, peak: 0 }
    }

    /// Cuts off room for `len` elements of `P`; address 0 for none.
    pub(crate) fn take<P>(&mut self, len: usize) -> Address {
        if len == 0 {
            return 0;
        }
        let address = self.base.saturating_add(self.used as Address);
        let bytes = len
            .saturating_mul(size_of::<P>())
            .checked_next_multiple_of(ALIGN)
            .unwrap_or(usize::MAX);
        self.used = self.used.saturating_add(bytes);
        self.peak = self.peak.max(self.used);
        address
    }

    /// Cuts off what `phase` needs, which the next phase may have again.
    pub(crate) fn phase<S>(&mut self, phase: impl FnOnce(&mut Self) -> S) -> S {
        let used = self.used;
        let buffers = phase(self);
        self.used = used;
        buffers
    }
}

/// The buffers of a call, and what keeps their memory alive: a buffer of the pool's, or nothing
/// where the caller does.
pub(crate) struct Scratch<S> {
    pub buffers: S,
    _memory: Option<Buffer<u8>>,
}

impl Engine {
    /// Cuts the buffers of `layout` from `given`, or from memory of the pool.
    ///
    /// # Errors
    /// [`Error::Argument`] where `given` is not aligned; [`Error::OutOfMemory`].
    pub(crate) fn scratch<S>(
        &self,
        given: Option<&ViewMut<'_, u8>>,
        layout: impl Fn(&mut Bump) -> S,
    ) -> Result<Scratch<S>> {
        if let Some(given) = given {
            if !given.is_empty() && !given.ptr().is_multiple_of(ALIGN as Address) {
                let why = "its address must be a multiple of 256";
                return Err(Error::Argument { tensor: "workspace", why });
            }
            return Ok(Scratch { buffers: layout(&mut Bump::new(given.ptr())), _memory: None });
        }
        let memory = self.device.alloc::<u8>(bytes(&layout))?;
        Ok(Scratch { buffers: layout(&mut Bump::new(memory.ptr())), _memory: Some(memory) })
    }

    /// The workspace of any forward pass of this plan.
    pub(crate) fn forward_workspace(&self) -> Workspace {
        workspace(|bump| self.forward_scratch(bump, true, true))
    }

    /// The workspace of any backward pass of this plan.
    pub(crate) fn backward_workspace(&self) -> Workspace {
        let needs = BackwardNeeds { d_r: true, d_b: true, time_loop: true, misaligned: true };
        workspace(|bump| self.backward_scratch(bump, needs))
    }

    /// Cuts a forward pass's buffers: without `last` the state is carried in one of them, without a
    /// fused kernel steps exchange h through another.
    pub(crate) fn forward_scratch(
        &self,
        bump: &mut Bump,
        carries: bool,
        time_loop: bool,
    ) -> ForwardScratch {
        let carried = if carries { self.shapes.state().iter().product() } else { 0 };
        ForwardScratch {
            carried: bump.take::<f32>(carried),
            exchange: bump.take::<u8>(if time_loop {
                2 * self.forward_exchange() * self.bytes
            } else {
                0
            }),
        }
    }

    /// Elements that the steps of a forward pass exchange: h `[B, N, depth]`.
    pub(crate) fn forward_exchange(&self) -> usize {
        self.shapes.batch * self.shapes.heads * self.depth
    }

    /// Elements that the steps of a backward pass exchange: dg `[B, N, Gr, depth]`.
    pub(crate) fn backward_exchange(&self) -> usize {
        self.forward_exchange() * self.shapes.recurrent
    }

    /// Cuts a backward pass's buffers.
    pub(crate) fn backward_scratch(
        &self,
        bump: &mut Bump,
        needs: BackwardNeeds,
    ) -> BackwardScratch {
        let (shapes, tokens) = (&self.shapes, self.shapes.tokens());
        let again = recompute(&self.problem);
        let previous_h = if again || needs.d_r { tokens * shapes.heads * self.depth } else { 0 };
        let wide = again && self.bytes < size_of::<f32>();
        let wide_gates = if wide { shapes.wide_gates.len() * tokens * shapes.units() } else { 0 };
        let d_inner = bump.take::<u8>(tokens * shapes.inner() * shapes.units() * self.bytes);
        let previous_h = bump.take::<u8>(previous_h * self.bytes);
        let wide_gates = bump.take::<f32>(wide_gates);
        let gates_again = bump.phase(|bump| again.then(|| self.gates_again_scratch(bump)));
        let [exchange, carried] = bump.phase(|bump| {
            let len = |len: usize| if needs.time_loop { len } else { 0 };
            let exchange = bump.take::<u8>(len(2 * self.backward_exchange() * self.bytes));
            [exchange, bump.take::<f32>(len(shapes.state().iter().product()))]
        });
        // d_b is summed while d_r is multiplied: theirs is one phase.
        let bias =
            if needs.d_b { self.column_parts().0 * shapes.gates * shapes.units() } else { 0 };
        BackwardScratch {
            d_inner,
            previous_h,
            wide_gates,
            gates_again,
            exchange,
            carried,
            bias: bump.take::<f32>(bias),
            d_r: needs.d_r.then(|| self.weight_scratch(bump, needs.misaligned)),
        }
    }

    fn gates_again_scratch(&self, bump: &mut Bump) -> GatesAgainScratch {
        let chunk = self.gates_again_chunk();
        let batch = self.shapes.recurrent * self.shapes.heads;
        GatesAgainScratch {
            products: bump.take::<f32>(chunk * batch * self.depth),
            addresses: bump.take::<u64>(3 * batch * self.shapes.tokens().div_ceil(chunk.max(1))),
            blas: self.blas_scratch(bump),
        }
    }

    fn weight_scratch(&self, bump: &mut Bump, misaligned: bool) -> WeightScratch {
        let shapes = &self.shapes;
        let parts = self.row_parts();
        let matrices = parts.total * shapes.recurrent * shapes.heads;
        let pads = !(shapes.head_dim * self.bytes).is_multiple_of(16);
        let mut padded = |gates: usize, pads: bool| {
            let rows = if pads { shapes.tokens() * gates * shapes.heads } else { 0 };
            bump.take::<u8>(rows * self.depth * self.bytes)
        };
        WeightScratch {
            padded: Gates {
                external: padded(shapes.external, pads || misaligned),
                inner: padded(shapes.inner(), pads),
            },
            partial: bump.take::<f32>(matrices.saturating_mul(shapes.head_dim * self.depth)),
            addresses: bump.take::<u64>(3 * matrices),
            blas: self.blas_scratch(bump),
        }
    }

    fn blas_scratch(&self, bump: &mut Bump) -> BlasScratch {
        let bytes = BlasScratch::bytes(self.device.shared.arch);
        BlasScratch { address: bump.take::<u8>(bytes), bytes }
    }
}

/// The buffers of a forward pass.
pub(crate) struct ForwardScratch {
    /// `[S, B, N, D]`
    pub carried: Address,
    /// `[2, B, N, depth]`
    pub exchange: Address,
}

/// What a backward pass needs buffers for, besides what every one of its plan needs.
#[derive(Clone, Copy)]
pub(crate) struct BackwardNeeds {
    pub d_r: bool,
    pub d_b: bool,
    /// There is no fused kernel for the call.
    pub time_loop: bool,
    /// `d_wx` does not begin at a multiple of 16 bytes.
    pub misaligned: bool,
}

/// The buffers of a backward pass. The first three live as long as it. Three groups follow each
/// other in time and share memory: `gates_again`; `exchange` and `carried`; `bias` and `d_r`.
pub(crate) struct BackwardScratch {
    /// `[tokens, G - Gx, N, D]`: the gradients of the gates that `d_wx` does not hold.
    pub d_inner: Address,
    /// `[tokens, N, depth]`
    pub previous_h: Address,
    /// `[WIDE_GATES, tokens, N, D]`, where the gates are computed again.
    pub wide_gates: Address,
    pub gates_again: Option<GatesAgainScratch>,
    /// `[2, B, N, Gr, depth]`
    pub exchange: Address,
    /// `[S, B, N, D]`
    pub carried: Address,
    /// `[parts, G, N, D]`
    pub bias: Address,
    pub d_r: Option<WeightScratch>,
}

/// The buffers in which all gates are computed again.
pub(crate) struct GatesAgainScratch {
    /// `[chunk, Gr, N, depth]`
    pub products: Address,
    /// `[3, chunks, Gr, N]`
    pub addresses: Address,
    pub blas: BlasScratch,
}

/// The buffers in which `d_r` is computed.
pub(crate) struct WeightScratch {
    /// dg of both tensors of gates with rows of `depth`, where theirs are not aligned.
    pub padded: Gates,
    /// `[parts, Gr, N, D, depth]`
    pub partial: Address,
    /// `[3, parts, Gr, N]`
    pub addresses: Address,
    pub blas: BlasScratch,
}

/// How much memory `layout` takes, in bytes.
fn bytes<S>(layout: impl Fn(&mut Bump) -> S) -> usize {
    let mut bump = Bump::new(ALIGN as Address);
    layout(&mut bump);
    bump.peak
}

fn workspace<S>(layout: impl Fn(&mut Bump) -> S) -> Workspace {
    match bytes(layout) {
        0 => Workspace::NONE,
        bytes => Workspace { bytes, align: ALIGN },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap_but_for_those_of_different_phases() {
        let layout = |bump: &mut Bump| {
            let first = bump.take::<f32>(1);
            let (a, b) = bump.phase(|bump| (bump.take::<u8>(257), bump.take::<u64>(1)));
            let later = bump.phase(|bump| bump.take::<u8>(3));
            [first, a, b, later, bump.take::<u8>(0)]
        };
        assert_eq!(layout(&mut Bump::new(4096)), [4096, 4352, 4864, 4352, 0]);
        assert_eq!(bytes(layout), 1024);
    }

    #[test]
    fn sizes_beyond_the_address_space_stay_too_large_to_allocate() {
        assert_eq!(
            bytes(|bump| [bump.take::<u64>(usize::MAX / 4), bump.take::<u8>(1)]),
            usize::MAX
        );
        assert_eq!(workspace(|bump| bump.take::<u8>(0)), Workspace::NONE);
    }
}
