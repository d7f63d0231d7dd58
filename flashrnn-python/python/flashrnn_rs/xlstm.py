"""The recurrence of sLSTM cells of the packages xlstm and tirex-ts, which loop over time in Python.

sLSTMCell_vanilla._impl = flashrnn_rs.xlstm.slstm_impl  # xlstm.blocks.slstm.cell
cell._impl_forward_torch = flashrnn_rs.xlstm.slstm_forward  # an sLSTMCell of tirex
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashrnn_rs._plans import Options
from flashrnn_rs.dropin import weights_of_one_dtype
from flashrnn_rs.functional import run

__all__ = ["slstm_forward", "slstm_impl"]

_OPTIONS = Options("slstm", time_major=True)


def slstm_forward(x: Tensor, states: Tensor, R: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Does what `sLSTMCellTorch.slstm_forward` of tirex-ts does, the loop of `sLSTMCell`.

    States are carried in float32, where tirex rounds them to the dtype of `R` at every step.

    Args:
        x: `[T, B, 4 * N * D]`, the input of gates i, f, z, o.
        states: `[4, B, N * D]`, h, c, n and m before the first step.
        R: `[N, D_in, 4 * D_out]`, the recurrent weights.
        b: `[4 * N * D]`, the bias.

    Returns:
        h at every step, `[T, B, N * D]`, and the states after the last, `[4, B, N * D]`, both of
        the dtype of `R`.
    """
    heads, dim, _ = R.shape
    r = R.view(heads, dim, 4, dim).permute(2, 0, 3, 1)
    h, last = _run(_OPTIONS, x, states, r, b, all_states=False)
    return h.flatten(2).to(R.dtype), last.flatten(2).to(R.dtype)


def slstm_impl(cell: Any, training: bool, input: Tensor, state: Tensor) -> Tensor:
    """Does what the method `_impl` of xlstm's `sLSTMCell_vanilla` does.

    The config's clips and cut have an effect, which they have only on CUDA in xlstm.

    Args:
        cell: The `sLSTMCell_vanilla`, with R `[N, 4 * D_out, D_in]` and b `[4 * N * D]`.
        training: Not used.
        input: `[T, B, 4 * N * D]`, the input of gates i, f, z, o.
        state: `[4, B, N * D]`, h, c, n and m before the first step.

    Returns:
        The states before the first step and after each, `[4, T + 1, B, N * D]`.
    """
    config = cell.config
    if config.function != "slstm":
        raise ValueError(f"function: got {config.function}, wanted slstm")
    options = _OPTIONS._replace(
        forward_clip=config.forward_clipval,
        recurrent_grad_clip=config.gradient_recurrent_clipval,
        cut_recurrent_grad=config.gradient_recurrent_cut,
    )
    heads, _, dim = cell._recurrent_kernel.shape
    r = cell._recurrent_kernel.view(heads, 4, dim, dim).transpose(0, 1)
    out, _ = _run(options, input, state, r, cell._bias, all_states=True)
    return torch.cat([state.unsqueeze(1).to(input.dtype), out.flatten(3).to(input.dtype)], 1)


def _run(
    options: Options, x: Tensor, states: Tensor, r: Tensor, b: Tensor, all_states: bool
) -> tuple[Tensor, Tensor]:
    """Returns all states `[4, T, B, N, D]`, or h `[T, B, N, D]`, and the last states."""
    heads = r.shape[1:3]
    r, b = weights_of_one_dtype(r, b.view(4, *heads), x.dtype)
    s0 = states.unflatten(2, heads)
    # Both packages usually pass a view of a batch-major tensor, which needs no copy.
    batch_major = not x.is_contiguous() and x.transpose(0, 1).is_contiguous()
    if batch_major:
        x, options = x.transpose(0, 1), options._replace(time_major=False)
    out, last = run(options, x.unflatten(2, (4, *heads)), r, b, s0, None, None, all_states)
    return out.transpose(-4, -3) if batch_major else out, last
