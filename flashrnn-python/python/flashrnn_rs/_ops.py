"""The operators `torch.ops.flashrnn_rs.*`: the passes on PyTorch tensors, without autograd.

`infer` and `forward` run the forward pass, `backward` the backward pass. They are functional and
have fakes, so that `torch.compile` and `torch.export` take them as they are. Shapes and devices are
checked by `flashrnn_rs.functional`, before it calls them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from typing import Any, overload

import torch
from torch import Tensor

from flashrnn_rs import _native
from flashrnn_rs._plans import Description, Options, Shapes, plan_on_cpu, saved_sizes

__all__ = ["DTYPES", "plan_for", "wide_dtype"]

DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
"""The names of the dtypes that tensors may have."""

# The fields of `Options`, in their order.
_OPTIONS = (
    "str cell, bool time_major, bool reverse, float? forward_clip, float? recurrent_grad_clip, "
    "bool cut_recurrent_grad, bool tf32, str save"
)
_INPUTS = "Tensor wx, Tensor r, Tensor b, Tensor? s0, Tensor? lengths, Tensor? resets"

_library = torch.library.Library("flashrnn_rs", "DEF")
# `out` is `states [S, B, T, N, D]` if `all_states`, otherwise `h [B, T, N, D]`.
_library.define(f"infer({_INPUTS}, bool all_states, {_OPTIONS}) -> (Tensor out, Tensor last)")
_library.define(
    f"forward({_INPUTS}, {_OPTIONS}) -> (Tensor states, Tensor last, Tensor gates, Tensor wide)"
)
# `wx` is needed to recompute gates. `d_out` is the gradient of `h` or of `states`. A gradient that
# is not wanted is empty.
_library.define(
    "backward(Tensor r, Tensor b, Tensor states, Tensor gates, Tensor wide, Tensor? wx, "
    "Tensor? s0, Tensor? lengths, Tensor? resets, Tensor? d_out, Tensor? d_last, "
    f"bool[3] wanted, {_OPTIONS}) -> (Tensor d_wx, Tensor d_r, Tensor d_b, Tensor d_s0)"
)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of `s0`, `last` and their gradients, for tensors of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def plan_for(description: Description, device: torch.device) -> _native.Plan:
    """Returns the plan for a device, on CUDA for the current stream."""
    if device.type == "cpu":
        return plan_on_cpu(description, torch.get_num_threads())
    if not hasattr(_thread, "uses_cuda"):
        _load_cuda()
        # Makes a context current on this thread, as PyTorch's operators do. Otherwise its next
        # product, often that of a linear layer's backward pass, warns that there is none.
        torch.zeros(1, device=device)
        _thread.uses_cuda = True
    stream = torch.cuda.current_stream(device).cuda_stream
    return _plan_on_cuda(description, device.index, stream)


_thread = threading.local()


@lru_cache(maxsize=128)
def _plan_on_cuda(description: Description, ordinal: int, stream: int) -> _native.Plan:
    return _native.Plan.cuda(description, ordinal, stream)


@lru_cache(maxsize=1)
def _load_cuda() -> None:
    """Loads NVRTC and cuBLAS from the wheels that PyTorch depends on, if they are installed.

    The native module looks for libraries that are not found, in CUDA toolkits.
    """
    try:
        pathfinder = import_module("cuda.pathfinder")
    except ModuleNotFoundError:
        return
    for name in ("nvrtc", "cublasLt", "cublas"):
        with suppress(pathfinder.DynamicLibNotFoundError):
            pathfinder.load_nvidia_dynamic_lib(name)


class _Call:
    """A call of a plan: names tensors by address and keeps them alive until it ends."""

    def __init__(self, shapes: Shapes, options: Options, like: Tensor, r: Tensor) -> None:
        dtypes = DTYPES[like.dtype], DTYPES[r.dtype]
        self.plan = plan_for(shapes.describe(options, *dtypes), like.device)
        self._like = like
        self._kept: list[Tensor] = []

    @overload
    def at(self, tensor: Tensor) -> tuple[int, int]: ...
    @overload
    def at(self, tensor: Tensor | None) -> tuple[int, int] | None: ...
    def at(self, tensor: Tensor | None) -> tuple[int, int] | None:
        """Makes a tensor contiguous, and returns its address and its size in bytes."""
        if tensor is None:
            return None
        tensor = tensor.contiguous()
        if tensor.data_ptr() % tensor.element_size():
            tensor = tensor.clone()  # of a buffer that is not aligned
        self._kept.append(tensor)
        return tensor.data_ptr(), tensor.nbytes

    def pack(self, r: Tensor, b: Tensor) -> _native.Weights:
        """Packs the weights."""
        return self.plan.pack(self.at(r), self.at(b), self._allocate(self.plan.packed_bytes))

    def scratch(self, which: int) -> tuple[int, int] | None:
        """Returns the scratch memory of a pass."""
        return self._allocate(self.plan.workspaces[which])

    def _allocate(self, size: int) -> tuple[int, int] | None:
        """Allocates memory with PyTorch's allocator; the CPU backend keeps its own."""
        if self._like.device.type == "cpu":
            return None
        return self.at(self._like.new_empty(size, dtype=torch.uint8))


def _new_wide(like: Tensor, shape: Sequence[int] | int) -> Tensor:
    return like.new_empty(shape, dtype=wide_dtype(like.dtype))


# The results of each operator, allocated for the operator itself and for its fake.


def _new_outputs(wx: Tensor, shapes: Shapes, all_states: bool) -> tuple[Tensor, Tensor]:
    return wx.new_empty(shapes.states if all_states else shapes.h), _new_wide(wx, shapes.state)


def _new_saving_outputs(
    wx: Tensor, shapes: Shapes, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states, last = _new_outputs(wx, shapes, all_states=True)
    gates, wide = saved_sizes(options, shapes, DTYPES[wx.dtype])
    return states, last, wx.new_empty(gates), _new_wide(wx, wide)


def _new_gradients(
    r: Tensor, b: Tensor, states: Tensor, shapes: Shapes, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    want_r, want_b, want_s0 = wanted
    return (
        states.new_empty(shapes.wx),
        r.new_empty(shapes.r if want_r else 0),
        b.new_empty(shapes.b if want_b else 0),
        _new_wide(states, shapes.state if want_s0 else 0),
    )


# The fakes.


def _infer_fake(
    wx: Tensor,
    r: Tensor,
    b: Tensor,
    s0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    all_states: bool,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    return _new_outputs(wx, Shapes.of(Options(*options), wx.shape), all_states)


def _forward_fake(
    wx: Tensor,
    r: Tensor,
    b: Tensor,
    s0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    *fields: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = Options(*fields)
    return _new_saving_outputs(wx, Shapes.of(options, wx.shape), options)


def _backward_fake(
    r: Tensor,
    b: Tensor,
    states: Tensor,
    gates: Tensor,
    wide: Tensor,
    wx: Tensor | None,
    s0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    d_out: Tensor | None,
    d_last: Tensor | None,
    wanted: Sequence[bool],
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = Shapes.of_states(Options(*options), states.shape)
    return _new_gradients(r, b, states, shapes, wanted)


# The operators themselves.


def _infer(
    wx: Tensor,
    r: Tensor,
    b: Tensor,
    s0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    all_states: bool,
    *fields: Any,
) -> tuple[Tensor, Tensor]:
    options = Options(*fields)
    shapes = Shapes.of(options, wx.shape)
    out, last = _new_outputs(wx, shapes, all_states)
    call = _Call(shapes, options, wx, r)
    call.plan.forward(
        call.pack(r, b),
        wx=call.at(wx),
        s0=call.at(s0),
        lengths=call.at(lengths),
        resets=call.at(resets),
        states=call.at(out if all_states else None),
        h=call.at(None if all_states else out),
        last=call.at(last),
        workspace=call.scratch(0),
    )
    return out, last


def _forward(
    wx: Tensor,
    r: Tensor,
    b: Tensor,
    s0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    *fields: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = Options(*fields)
    shapes = Shapes.of(options, wx.shape)
    states, last, gates, wide = _new_saving_outputs(wx, shapes, options)
    call = _Call(shapes, options, wx, r)
    call.plan.forward(
        call.pack(r, b),
        wx=call.at(wx),
        s0=call.at(s0),
        lengths=call.at(lengths),
        resets=call.at(resets),
        states=call.at(states),
        last=call.at(last),
        saved=(call.at(gates), call.at(wide)),
        workspace=call.scratch(0),
    )
    return states, last, gates, wide


def _backward(
    r: Tensor,
    b: Tensor,
    states: Tensor,
    gates: Tensor,
    wide: Tensor,
    wx: Tensor | None,
    s0: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    d_out: Tensor | None,
    d_last: Tensor | None,
    wanted: Sequence[bool],
    *fields: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = Options(*fields)
    shapes = Shapes.of_states(options, states.shape)
    d_wx, d_r, d_b, d_s0 = _new_gradients(r, b, states, shapes, wanted)
    call = _Call(shapes, options, states, r)
    of_states = d_out is not None and d_out.dim() == states.dim()
    want_r, want_b, want_s0 = wanted
    call.plan.backward(
        call.pack(r, b),
        states=call.at(states),
        saved=(call.at(gates), call.at(wide)),
        wx=call.at(wx),
        s0=call.at(s0),
        lengths=call.at(lengths),
        resets=call.at(resets),
        d_h=call.at(None if of_states else d_out),
        d_states=call.at(d_out if of_states else None),
        d_last=call.at(d_last),
        d_wx=call.at(d_wx),
        d_r=call.at(d_r if want_r else None),
        d_b=call.at(d_b if want_b else None),
        d_s0=call.at(d_s0 if want_s0 else None),
        workspace=call.scratch(1),
    )
    return d_wx, d_r, d_b, d_s0


for _name, _run, _fake in (
    ("infer", _infer, _infer_fake),
    ("forward", _forward, _forward_fake),
    ("backward", _backward, _backward_fake),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, _run, "CUDA")
    torch.library.register_fake(f"flashrnn_rs::{_name}", _fake, lib=_library)
