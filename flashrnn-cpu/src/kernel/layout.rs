//! Offsets in the tensors of a call.

use flashrnn_core::{Cell, CellSizes, Shapes};

/// The order of gates, and of their gradients, in memory.
///
/// Gates with external input are stored in a tensor of the shape of `wx`, `[B, T, Gx, N, D]`. The
/// others, which come first in a cell's order, are stored in one of shape `[B, T, G - Gx, N, D]`.
/// The buffer of saved gates holds both tensors, in this order.
#[derive(Clone, Copy)]
pub(crate) struct GateLayout {
    units: usize,
    /// G - Gx
    inner: usize,
    /// Gx
    external: usize,
    tokens: usize,
}

impl GateLayout {
    /// Returns the layout of a problem.
    pub fn new(shapes: &Shapes) -> Self {
        let (inner, external) = (shapes.inner(), shapes.external);
        Self { units: shapes.units(), inner, external, tokens: shapes.tokens() }
    }

    /// Returns the layout of a problem with the cell `C`. The numbers of gates are then
    /// compile-time constants.
    #[inline(always)]
    pub fn of_cell<C: Cell>(shapes: &Shapes) -> Self {
        let (inner, external) = (C::G - C::GX, C::GX);
        Self { units: shapes.units(), inner, external, tokens: shapes.tokens() }
    }

    /// Returns the tensor that holds a gate, either `external` or `inner`, and the offset in it of
    /// a token's units.
    #[inline(always)]
    pub fn locate<A>(&self, gate: usize, token: usize, [external, inner]: [A; 2]) -> (A, usize) {
        if gate >= self.inner {
            (external, (token * self.external + gate - self.inner) * self.units)
        } else {
            (inner, (token * self.inner + gate) * self.units)
        }
    }

    /// Returns the offset of a token's units of a gate in the buffer of saved gates.
    #[inline(always)]
    pub fn saved(&self, gate: usize, token: usize) -> usize {
        let (tensor, offset) =
            self.locate(gate, token, [0, self.tokens * self.external * self.units]);
        tensor + offset
    }
}

/// Offsets of some units of one head in tensors that end in the axes `[N, D]`.
#[derive(Clone, Copy)]
pub(crate) struct UnitOffsets {
    batch: usize,
    tokens: usize,
    units: usize,
    /// The first of the units, counted over all heads.
    column: usize,
}

impl UnitOffsets {
    #[inline(always)]
    pub fn new(shapes: &Shapes, column: usize) -> Self {
        Self { batch: shapes.batch, tokens: shapes.tokens(), units: shapes.units(), column }
    }

    /// Returns the first of the units, counted over all heads.
    #[inline(always)]
    pub fn column(&self) -> usize {
        self.column
    }

    /// Returns the offset in the `k`th tensor `[B, T, N, D]` of a buffer, such as `states`.
    #[inline(always)]
    pub fn token(&self, k: usize, token: usize) -> usize {
        (k * self.tokens + token) * self.units + self.column
    }

    /// Returns the offset in the `k`th tensor `[B, N, D]` of a buffer, such as `s0`.
    #[inline(always)]
    pub fn row(&self, k: usize, b: usize) -> usize {
        (k * self.batch + b) * self.units + self.column
    }

    /// Returns the offset in the `k`th row `[N, D]` of a buffer, such as `b`.
    #[inline(always)]
    pub fn unit(&self, k: usize) -> usize {
        k * self.units + self.column
    }
}
