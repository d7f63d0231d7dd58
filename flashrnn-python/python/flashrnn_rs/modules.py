"""`LSTM`, `GRU`, `RNN` and `SLSTM`: modules with the contract of PyTorch's own.

The first three have the constructors, the parameters, the state dicts, the inputs and the outputs
of `torch.nn.LSTM`, `GRU` and `RNN`, so that weights can be loaded from one into the other, and
equal random seeds make equal weights. `SLSTM` has the same interface. In addition, all have

- `heads`: independent heads of `hidden_size / heads` units, each of which reads its own past only.
  `weight_hh` then is `[gates * hidden_size, hidden_size / heads]`.
- `save`: `gates`, or `recompute` to save memory and compute the gates again in the backward pass.
- `lengths` and `resets`, arguments of a call.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from flashrnn_rs._plans import CELLS, check_shape
from flashrnn_rs.functional import rnn
from flashrnn_rs.stream import Stream

__all__ = ["GRU", "LSTM", "RNN", "SLSTM"]

_States = tuple[Tensor, ...]


class _Recurrent(nn.Module):
    """Layers of a cell, in one or both directions."""

    cell: str
    """The name of the cell."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        heads: int = 1,
        save: str = "gates",
    ) -> None:
        """Makes the module, with random weights.

        Args:
            input_size: The number of input features.
            hidden_size: The number of units of a layer and direction, in all heads together.
            num_layers: The number of layers, each of which reads the output of the one before.
            bias: Whether there are biases.
            batch_first: Whether tensors with a time axis are `[B, T, ...]`, not `[T, B, ...]`.
            dropout: The probability that an output of a layer, other than the last layer's, is
                zeroed in training.
            bidirectional: Whether each layer also runs backwards in time.
            proj_size: Must be 0; projections are not supported.
            device: The device of the parameters.
            dtype: The dtype of the parameters.
            heads: The number of independent heads. It divides `hidden_size`.
            save: What is saved for the backward pass, `gates` or `recompute`.
        """
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in {**sizes, "heads": heads}.items():
            if size < 1:
                raise ValueError(f"{name}: got {size}, wanted at least 1")
        if hidden_size % heads:
            raise ValueError(f"heads: got {heads}, wanted a divisor of hidden_size {hidden_size}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout: got {dropout}, wanted a probability, 0 to 1")
        if proj_size:
            raise NotImplementedError(
                f"proj_size: got {proj_size}, wanted 0: projections are not supported"
            )
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout {dropout} has no effect: it is between layers, and there is one layer",
                stacklevel=3,
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bidirectional, proj_size
        self.heads, self.save = heads, save

        rows = CELLS[self.cell].external * hidden_size
        for layer, suffix in self._suffixes():
            inputs = input_size if layer == 0 else hidden_size * self._directions
            shapes = ((rows, inputs), (rows, hidden_size // heads), (rows,), (rows,))
            for name, shape in zip(self._names(), shapes, strict=False):
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(name + suffix, parameter)
        self.reset_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self) -> list[tuple[int, str]]:
        """Returns, for each layer and direction, the layer and the suffix of its parameters."""
        directions = ("", "_reverse")[: self._directions]
        return [(k, f"_l{k}{suffix}") for k in range(self.num_layers) for suffix in directions]

    def _names(self) -> tuple[str, ...]:
        """Returns the names of a layer's parameters, without their suffix."""
        return ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction."""
        names = self._names()
        return [[getattr(self, name + suffix) for name in names] for _, suffix in self._suffixes()]

    def reset_parameters(self) -> None:
        """Draws all parameters evenly from ± 1 / sqrt(units of a head)."""
        bound = 1 / math.sqrt(self.hidden_size // self.heads)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read the parameters wherever they are."""

    def extra_repr(self) -> str:
        """Lists the sizes, and the options that differ from their defaults."""
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "heads": 1,
            "save": "gates",
        }
        options = {name: getattr(self, name) for name in defaults}
        changed = [f"{name}={v}" for name, v in options.items() if v != defaults[name]]
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed])

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | _States | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Runs all layers over all steps.

        Args:
            input: `[T, B, input_size]`, with `batch_first` `[B, T, input_size]`, without a batch
                `[T, input_size]`, or a PackedSequence.
            hx: The initial states, each `[num_layers * directions, B, hidden_size]`, without a
                batch `[num_layers * directions, hidden_size]`; zeros if absent. One tensor for
                cells with one state, a tuple for others.
            lengths: `[B]`, the number of steps of each row, in place of a PackedSequence. Later
                outputs are zero, and what is in the input there has no effect.
            resets: `[T, B]`, with `batch_first` `[B, T]`, without a batch `[T]`; true at the first
                step of a document, where the state is zeroed. The reverse direction zeroes it
                before a document's last step.

        Returns:
            The output, `[T, B, hidden_size * directions]` in the form of the input, and the final
            states in the form of `hx`.
        """
        states = (hx,) if isinstance(hx, Tensor) else hx
        if isinstance(input, PackedSequence):
            if lengths is not None or resets is not None:
                raise ValueError("lengths and resets: can't be combined with a PackedSequence")
            packed, last = self._packed(input, states)
            return packed, self._like_hx(last)
        if input.dim() == 3:
            output, last = self.run_padded(input, states, lengths, resets, self.batch_first)
        elif input.dim() == 2:
            if lengths is not None:
                raise ValueError("lengths: can't be combined with an input without a batch")
            if states is not None:
                states = tuple(state.unsqueeze(1) for state in states)
            resets = None if resets is None else resets.unsqueeze(1)
            output, last = self.run_padded(input.unsqueeze(1), states, None, resets, False)
            output, last = output.squeeze(1), tuple(state.squeeze(1) for state in last)
        else:
            raise ValueError(f"input: got shape {list(input.shape)}, wanted 2 or 3 dimensions")
        return output, self._like_hx(last)

    def _like_hx(self, states: _States) -> Tensor | _States:
        return states[0] if CELLS[self.cell].states == 1 else states

    def stream(self, batch_size: int = 1) -> Stream:
        """Returns a stream, which runs the layers one step at a time and keeps their states.

        It copies the weights, works without gradients, and is not bidirectional.

        Args:
            batch_size: The number of rows, B.
        """
        if self.bidirectional:
            raise ValueError("bidirectional: a stream runs forwards only")
        layers = [
            (weight_ih, *self._recurrent_weights(*recurrent))
            for weight_ih, *recurrent in self.all_weights
        ]
        return Stream(self.cell, layers, batch_size)

    def _packed(
        self, input: PackedSequence, states: _States | None
    ) -> tuple[PackedSequence, _States]:
        """Runs a PackedSequence as a padded tensor, with its rows in the order of their lengths."""
        ordered = PackedSequence(input.data, input.batch_sizes)
        x, lengths = pad_packed_sequence(ordered)
        if states is not None and input.sorted_indices is not None:
            states = tuple(state.index_select(1, input.sorted_indices) for state in states)
        output, last = self.run_padded(x, states, lengths, None, False, clean=True)
        if input.unsorted_indices is not None:
            last = tuple(state.index_select(1, input.unsorted_indices) for state in last)
        return input._replace(data=pack_padded_sequence(output, lengths).data), last

    def run_padded(
        self,
        x: Tensor,
        states: _States | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        batch_first: bool,
        clean: bool = False,
    ) -> tuple[Tensor, _States]:
        """Runs all layers. `clean` says that the input is finite beyond the lengths."""
        batch_axis, time_axis = (0, 1) if batch_first else (1, 0)
        batch, time = x.shape[batch_axis], x.shape[time_axis]
        directions = self._directions
        check_shape("input", x.shape[2:], (self.input_size,))
        if states is not None:
            if len(states) != CELLS[self.cell].states:
                raise ValueError(f"hx: got {len(states)}, wanted {CELLS[self.cell].states} tensors")
            for state in states:
                check_shape(
                    "hx", state.shape, (self.num_layers * directions, batch, self.hidden_size)
                )
        within = None
        if lengths is not None:
            lengths = lengths.to(x.device)
        if lengths is not None and not clean:
            steps = torch.arange(time, device=x.device).unsqueeze(batch_axis)
            within = steps < lengths.unsqueeze(time_axis)
            # Otherwise the gradient of `weight_ih` would be 0 times what is there.
            x = x.masked_fill(~within.unsqueeze(2), 0)
        weights = self.all_weights
        resets_by_direction = [resets, _at_last_steps(resets, within, time_axis)]
        last: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                s0 = None if states is None else torch.stack([state[k] for state in states])
                options: dict[str, Any] = {
                    "lengths": lengths,
                    "resets": resets_by_direction[direction],
                    "reverse": direction == 1,
                    "time_major": not batch_first,
                }
                output, end = self._layer(x, weights[k], s0, options)
                outputs.append(output)
                last.append(end)
            x = outputs[0] if directions == 1 else torch.cat(outputs, 2)
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        ends = torch.stack(last, 1).to(x.dtype)
        # Not by `unbind`, whose results must not be changed in place.
        return x, tuple(ends[k] for k in range(len(ends)))

    def _layer(
        self, x: Tensor, weights: list[Tensor], s0: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Runs one layer in one direction. Returns `[T, B, H]` (or batch-major) and `[S, B, H]`."""
        heads = self._head_sizes
        weight_ih, *recurrent = weights
        wx = F.linear(x, weight_ih).unflatten(2, (-1, *heads))
        s0 = None if s0 is None else s0.unflatten(2, heads)
        r, b = self._recurrent_weights(*recurrent)
        h, last = rnn(wx, r, b, s0, self.cell, save=self.save, **options)
        return h.flatten(2), last.flatten(2)

    @property
    def _head_sizes(self) -> tuple[int, int]:
        return self.heads, self.hidden_size // self.heads

    def _recurrent_weights(self, weight_hh: Tensor, *biases: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `R [Gr, N, D, D]` and `b [G, N, D]` of a layer, in the order of the gates."""
        heads = self._head_sizes
        r = weight_hh.view(-1, *heads, heads[1])
        if biases:
            b_ih, b_hh = (bias.view(-1, *heads) for bias in biases)
        else:
            b_ih = b_hh = weight_hh.new_zeros(len(r), *heads)
        return self._by_gates(r, b_ih, b_hh)

    def _by_gates(self, r: Tensor, b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
        """Returns R and b in the order of the cell's gates."""
        return r, b_ih + b_hh


def _at_last_steps(resets: Tensor | None, within: Tensor | None, time_axis: int) -> Tensor | None:
    """Moves flags from the first step of a document to the last step of the one before it."""
    if resets is None:
        return None
    flags = resets != 0 if within is None else (resets != 0) & within
    time = flags.shape[time_axis]
    return F.pad(flags, (0, 1) if time_axis == 1 else (0, 0, 0, 1)).narrow(time_axis, 1, time)


class LSTM(_Recurrent):
    """`torch.nn.LSTM`, without projections. States h and c; gates i, f, z, o (PyTorch's g is z)."""

    cell = "lstm"


class SLSTM(_Recurrent):
    """The sLSTM of the xLSTM. States h, c, n and m; gates i, f, z, o, in this order in weights."""

    cell = "slstm"


class GRU(_Recurrent):
    """`torch.nn.GRU`. Gates in weights: r, z, n."""

    cell = "gru"

    def _by_gates(self, r: Tensor, b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
        # The cell has the recurrent and the external part of n apart: n_h, r, z, n_x.
        both = b_ih[:2] + b_hh[:2]
        return r.roll(1, 0), torch.cat([b_hh[2:], both, b_ih[2:]])


class RNN(_Recurrent):
    """`torch.nn.RNN`, the Elman network, with `nonlinearity` `tanh` or `relu`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        heads: int = 1,
        save: str = "gates",
    ) -> None:
        """Makes the module, with random weights.

        The arguments are those of `LSTM`, and `nonlinearity`, which is `tanh` or `relu`.
        """
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: got {nonlinearity}, wanted tanh or relu")
        self.nonlinearity = nonlinearity
        self.cell = "elman" if nonlinearity == "tanh" else "elman_relu"
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            heads=heads,
            save=save,
        )
