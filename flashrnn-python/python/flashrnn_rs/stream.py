"""Recurrent networks that receive their input one step at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flashrnn_rs._ops import DTYPES, plan_for, wide_dtype
from flashrnn_rs._plans import CELLS, Options, Shapes, check_shape

__all__ = ["Stream"]


class _Layer:
    """A layer whose weights are packed."""

    def __init__(self, cell: str, batch: int, weight_ih: Tensor, r: Tensor, b: Tensor) -> None:
        r, b = r.contiguous(), b.contiguous()
        options, (_, heads, _, dim), dtype = Options(cell), r.shape, DTYPES[r.dtype]
        shapes = Shapes.of(options, (batch, 1, CELLS[cell].external, heads, dim))
        self._description = shapes.describe(options, dtype, dtype)
        self.weight_ih = weight_ih.clone()
        self.state = r.new_zeros(shapes.state, dtype=wide_dtype(r.dtype))  # [S, B, N, D]
        self._plan = plan_for(self._description, r.device)
        # On a GPU, the weights are in this tensor, for the plans of all streams.
        self._packed = r.new_empty(self._plan.packed_bytes, dtype=torch.uint8)
        self._weights = self._plan.pack(_at(r), _at(b), _at(self._packed))

    def step(self, x: Tensor) -> Tensor:
        """Advances the state. Returns h, `[B, N * D]`."""
        if x.is_cuda:
            self._follow_the_current_stream()
        wx = F.linear(x, self.weight_ih).to(self.weight_ih.dtype)
        h = wx.new_empty(self.state.shape[1:])
        self._plan.step(self._weights, wx=_at(wx), state=_at(self.state), h=_at(h))
        return h.flatten(1)

    def _follow_the_current_stream(self) -> None:
        plan = plan_for(self._description, self.state.device)
        if plan is not self._plan:
            self._plan, self._weights = plan, plan.packed(_at(self._packed))


class Stream:
    """Layers of a cell that run one step at a time, without gradients.

    Made by the method `stream` of a module, from the weights that the module has at that time. On
    CUDA, a step runs on the current stream, and can be captured in a graph.
    """

    def __init__(
        self, cell: str, layers: Sequence[tuple[Tensor, Tensor, Tensor]], batch_size: int
    ) -> None:
        """Packs the `weight_ih`, `r` and `b` of each layer. The states are zeros."""
        self.cell, self.batch_size = cell, batch_size
        self._layers = [_Layer(cell, batch_size, *(t.detach() for t in layer)) for layer in layers]

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
            x = layer.step(x)
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
