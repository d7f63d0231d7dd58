"""Recurrent networks that receive their input one step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flashrnn_rs import _native
from flashrnn_rs._ops import DTYPES, plan_for, wide_dtype
from flashrnn_rs._plans import CELLS, Options, Shapes, check_shape

__all__ = ["Stream"]


class _Layer(NamedTuple):
    """A layer whose weights are packed."""

    weight_ih: Tensor
    plan: _native.Plan
    weights: _native.Weights
    state: Tensor
    """`[S, B, N, D]`, advanced in place"""


class Stream:
    """Layers of a cell that run one step at a time, without gradients.

    Made by the method `stream` of a module, from the weights that the module has at that time.
    """

    def __init__(
        self, cell: str, layers: Sequence[tuple[Tensor, Tensor, Tensor]], batch_size: int
    ) -> None:
        """Packs the `weight_ih`, `r` and `b` of each layer. The states are zeros."""
        self.cell, self.batch_size = cell, batch_size
        self._layers = [self._packed(*(t.detach() for t in tensors)) for tensors in layers]

    def _packed(self, weight_ih: Tensor, r: Tensor, b: Tensor) -> _Layer:
        r, b = r.contiguous(), b.contiguous()
        options, (_, heads, _, dim) = Options(self.cell), r.shape
        shapes = Shapes.of(options, (self.batch_size, 1, CELLS[self.cell].external, heads, dim))
        dtype = DTYPES[r.dtype]
        plan = plan_for(shapes.describe(options, dtype, dtype), r.device)
        state = r.new_zeros(shapes.state, dtype=wide_dtype(r.dtype))
        return _Layer(weight_ih.clone(), plan, plan.pack(_at(r), _at(b)), state)

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        """Runs one step of all layers.

        Args:
            x: `[B, input_size]`, of the dtype and on the device of the weights.

        Returns:
            The output, `[B, hidden_size]`.
        """
        check_shape("x", x.shape, (self.batch_size, self._layers[0].weight_ih.shape[1]))
        for layer in self._layers:
            wx = F.linear(x, layer.weight_ih).to(layer.weight_ih.dtype)
            h = wx.new_empty(layer.state.shape[1:])
            layer.plan.step(layer.weights, wx=_at(wx), state=_at(layer.state), h=_at(h))
            x = h.flatten(1)
        return x

    @property
    def states(self) -> tuple[Tensor, ...]:
        """The states, each `[num_layers, B, hidden_size]`, as a module takes and returns them.

        Reading makes a copy. Assigning sets the states.
        """
        each = torch.stack([layer.state for layer in self._layers], 1)
        return each.flatten(3).to(self._layers[0].weight_ih.dtype).unbind(0)

    @states.setter
    @torch.no_grad()
    def states(self, states: Sequence[Tensor]) -> None:
        count, batch, heads, dim = self._layers[0].state.shape
        if len(states) != count:
            raise ValueError(f"states: got {len(states)}, wanted {count} tensors")
        for state in states:
            check_shape("states", state.shape, (len(self._layers), batch, heads * dim))
        for k, layer in enumerate(self._layers):
            for of_layer, state in zip(layer.state, states, strict=True):
                of_layer.copy_(state[k].view(batch, heads, dim))

    def reset(self, rows: Tensor | None = None) -> None:
        """Zeroes the states of all rows, or of those where `rows [B]` is true."""
        for layer in self._layers:
            if rows is None:
                layer.state.zero_()
            else:
                check_shape("rows", rows.shape, (self.batch_size,))
                layer.state.masked_fill_((rows != 0).view(1, -1, 1, 1), 0)


def _at(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes
