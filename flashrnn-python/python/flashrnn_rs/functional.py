"""Recurrent networks as a differentiable function of PyTorch tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flashrnn_rs._ops import DTYPES, wide_dtype
from flashrnn_rs._plans import Options, Shapes, check_shape

__all__ = ["rnn"]

_DEVICES = ("cpu", "cuda", "meta")
_INT32_MAX = 2**31 - 1


def rnn(
    wx: Tensor,
    r: Tensor,
    b: Tensor,
    s0: Tensor | None = None,
    cell: str = "lstm",
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    time_major: bool = False,
    forward_clip: float | None = None,
    recurrent_grad_clip: float | None = None,
    cut_recurrent_grad: bool = False,
    tf32: bool = False,
    save: str = "gates",
) -> tuple[Tensor, Tensor]:
    """Runs the recurrence `g_t = R h_{t-1} + x_t + b`, `s_t = P(s_{t-1}, g_t)` over all steps.

    The letters are sizes: B rows of a batch, T time steps, N heads of D units; a cell has S states
    and G gates, of which the first Gr read the last h and the last Gx read the input.

    | cell | states | gates, in order | recurrent | external |
    |---|---|---|---|---|
    | `elman`, `elman_relu` | h | g | all | all |
    | `gru` | h | n_h, r, z, n_x | n_h, r, z | r, z, n_x |
    | `lstm` | h, c | i, f, z, o | all | all |
    | `slstm` | h, c, n, m | i, f, z, o | all | all |

    Args:
        wx: `[B, T, Gx, N, D]`, the input pre-activations: W is applied already. On the CPU or on
            CUDA; float32, bfloat16, float16, or, on the CPU, float64. Under autocast it is cast.
        r: `[Gr, N, D_out, D_in]`, the recurrent weights of each head, of the dtype of `wx`, or
            float32 if `wx` has 16 bits.
        b: `[G, N, D]`, the bias, of the dtype of `r`.
        s0: `[S, B, N, D]`, the initial state; zeros if absent.
        cell: The name of the cell.
        lengths: `[B]`, the number of steps of each row, 0 to T. Later outputs are zero. On the CPU
            other lengths are an error, on CUDA they are clamped.
        resets: `[B, T]`, true where the row's state is zeroed before the step. With `reverse`, a
            flag therefore marks the last step of a document.
        reverse: Whether time runs backwards, for each row from its own end. Outputs keep their
            positions.
        time_major: Whether `wx` is `[T, B, Gx, N, D]`, `h` `[T, B, N, D]`, and `resets` `[T, B]`.
        forward_clip: Clamps h to ± this number after each step.
        recurrent_grad_clip: Clamps the gradient that flows through R to ± this number.
        cut_recurrent_grad: Whether no gradient flows through R to the last h.
        tf32: Whether products of float32 may be rounded to TF32, on CUDA.
        save: What is saved for the backward pass: `gates`, or `recompute` to save memory and
            compute the gates again.

    Returns:
        `h [B, T, N, D]`, h at every step, of the dtype of `wx`, and `last [S, B, N, D]`, the state
        that each row ends in, of float32 (float64 if `wx` is).

    Raises:
        ValueError: A shape, a dtype, a device, a length or an option is wrong.
        TypeError: An argument is no tensor.
        NotImplementedError: The device is not supported, or does not support the dtype.
    """
    options = Options(
        cell=cell,
        time_major=time_major,
        reverse=reverse,
        forward_clip=forward_clip,
        recurrent_grad_clip=recurrent_grad_clip,
        cut_recurrent_grad=cut_recurrent_grad,
        tf32=tf32,
        save=save,
    )
    return run(options, wx, r, b, s0, lengths, resets, all_states=False)


def run(
    options: Options,
    wx: Tensor,
    r: Tensor,
    b: Tensor,
    s0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    all_states: bool,
) -> tuple[Tensor, Tensor]:
    """Does the same as `rnn`. With `all_states`, returns `states [S, B, T, N, D]` in place of h."""
    _check_wx(wx)
    if wx.dtype == torch.float32 and torch.is_autocast_enabled(wx.device.type):
        wx = wx.to(torch.get_autocast_dtype(wx.device.type))
    shapes = Shapes.of(options, wx.shape)
    _check("r", r, wx, shapes.r)
    _check("b", b, wx, shapes.b)
    if b.dtype != r.dtype:
        raise ValueError(f"b: got {b.dtype}, wanted {r.dtype} as r")
    if s0 is not None:
        _check("s0", s0, wx, shapes.state)
        s0 = s0.to(wide_dtype(wx.dtype))
    if lengths is not None:
        _check("lengths", lengths, wx, (shapes.batch,))
        lengths = _int32(lengths)
    if resets is not None:
        _check("resets", resets, wx, shapes.resets)
        resets = resets if resets.dtype == torch.bool else resets != 0
    differentiable = (wx, r, b) if s0 is None else (wx, r, b, s0)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable):
        out, last = _Rnn.apply(wx, r, b, s0, lengths, resets, all_states, options)
    else:
        infer = torch.ops.flashrnn_rs.infer
        out, last = infer(wx, r, b, s0, lengths, resets, all_states, *options)
    return out, last


def _check_wx(wx: Tensor) -> None:
    _check_kind("wx", wx)
    if wx.dtype not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        raise ValueError(f"wx: got {wx.dtype}, wanted one of {known}")
    if wx.device.type not in _DEVICES:
        raise NotImplementedError(f"wx: got a tensor on {wx.device}, wanted cpu or cuda")


def _check(name: str, tensor: Tensor, wx: Tensor, shape: tuple[int, ...]) -> None:
    _check_kind(name, tensor)
    check_shape(name, tensor.shape, shape)
    if tensor.device != wx.device:
        raise ValueError(f"{name}: got a tensor on {tensor.device}, wanted {wx.device} as wx")


def _check_kind(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got a {type(tensor).__name__}, wanted a tensor")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: got {tensor.layout}, wanted torch.strided")


def _int32(lengths: Tensor) -> Tensor:
    if lengths.is_floating_point() or lengths.is_complex():
        raise ValueError(f"lengths: got {lengths.dtype}, wanted integers")
    if lengths.dtype == torch.int64:
        lengths = lengths.clamp(-_INT32_MAX, _INT32_MAX)
    return lengths.to(torch.int32)


class _Rnn(torch.autograd.Function):
    """The passes as one differentiable function."""

    @staticmethod
    def forward(
        ctx: Any,
        wx: Tensor,
        r: Tensor,
        b: Tensor,
        s0: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        all_states: bool,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        forward = torch.ops.flashrnn_rs.forward
        states, last, gates, wide = forward(wx, r, b, s0, lengths, resets, *options)
        again = wx if options.save == "recompute" else None
        ctx.save_for_backward(r, b, states, gates, wide, again, s0, lengths, resets)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return states if all_states else states[0], last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        d_out, d_last = grad_outputs
        wanted = ctx.needs_input_grad[1:4]
        backward = torch.ops.flashrnn_rs.backward
        gradients = backward(*ctx.saved_tensors, d_out, d_last, wanted, *ctx.options)
        masked = [d if want else None for d, want in zip(gradients, (True, *wanted), strict=True)]
        return (*masked, None, None, None, None)
