"""Recurrent networks on NumPy arrays, forward and backward, on the CPU.

The letters are sizes: B rows of a batch, T time steps, N heads of D units; a cell has S states and
G gates, of which the first Gr read the last h and the last Gx read the input.

>>> import numpy as np
>>> from flashrnn_rs.numpy import forward
>>> random = np.random.default_rng(0)
>>> wx = random.normal(size=(2, 100, 4, 3, 8)).astype(np.float32)  # [B, T, Gx, N, D]
>>> r = random.normal(size=(4, 3, 8, 8)).astype(np.float32) / 8  # [Gr, N, D_out, D_in]
>>> b = np.zeros((4, 3, 8), np.float32)  # [G, N, D]
>>> out = forward(wx, r, b, cell="lstm", save="gates")
>>> out.h.shape  # [B, T, N, D]
(2, 100, 3, 8)
>>> gradients = out.backward(d_h=np.ones_like(out.h))
>>> gradients.d_r.shape
(4, 3, 8, 8)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from flashrnn_rs import _native
from flashrnn_rs._plans import Options, Shapes, check_shape, plan_on_cpu, saved_sizes

__all__ = ["Gradients", "Outputs", "forward"]

_Array = NDArray[Any]
_LAYOUT: Final = ("C_CONTIGUOUS", "ALIGNED")
_INT32 = (-(2**31), 2**31 - 1)


class Gradients(NamedTuple):
    """The gradients of a loss."""

    d_wx: _Array
    """`[B, T, Gx, N, D]`, of the dtype of `wx`"""
    d_r: _Array
    """`[Gr, N, D_out, D_in]`, of the dtype of `r`"""
    d_b: _Array
    """`[G, N, D]`, of the dtype of `r`"""
    d_s0: _Array
    """`[S, B, N, D]`, float32, or float64 if `wx` is"""


class _Pass(NamedTuple):
    """A forward pass, as its backward pass needs it."""

    plan: _native.Plan
    shapes: Shapes
    weights: _native.Weights
    weight_dtype: np.dtype[Any]
    wx: _Array
    s0: _Array | None
    lengths: _Array | None
    resets: _Array | None
    saved: tuple[_Array, _Array]


@dataclass(frozen=True, eq=False)
class Outputs:
    """The results of a forward pass."""

    h: _Array
    """`[B, T, N, D]`: h at every step"""
    last: _Array
    """`[S, B, N, D]`: the state that each row ends in; float32, or float64 if `wx` is"""
    states: _Array | None = None
    """`[S, B, T, N, D]`: every state at every step, with `save`; `states[0]` is h"""
    _pass: _Pass | None = field(default=None, repr=False)

    def backward(
        self,
        d_h: ArrayLike | None = None,
        *,
        d_states: ArrayLike | None = None,
        d_last: ArrayLike | None = None,
    ) -> Gradients:
        """Computes the gradients of a loss by backpropagation through time.

        It reads `states`, and may read the arrays given to `forward` again, so none of them must
        have changed.

        Args:
            d_h: `[B, T, N, D]`, the gradient of `h`. Excludes `d_states`.
            d_states: `[S, B, T, N, D]`, the gradient of `states`.
            d_last: `[S, B, N, D]`, the gradient of `last`.

        Raises:
            ValueError: A shape is wrong, or `forward` was called without `save`.
        """
        call, states = self._pass, self.states
        if call is None or states is None:
            raise ValueError("save: got None, wanted gates or recompute for a backward pass")
        shapes, element, wide = call.shapes, self.h.dtype, self.last.dtype
        d_h = _optional("d_h", d_h, element, shapes.h)
        d_states = _optional("d_states", d_states, element, shapes.states)
        d_last = _optional("d_last", d_last, wide, shapes.state)
        gradients = Gradients(
            d_wx=np.empty(shapes.wx, element),
            d_r=np.empty(shapes.r, call.weight_dtype),
            d_b=np.empty(shapes.b, call.weight_dtype),
            d_s0=np.empty(shapes.state, wide),
        )
        gates, wide_states = call.saved
        call.plan.backward(
            call.weights,
            states=_at(states),
            saved=(_at(gates), _at(wide_states)),
            wx=_at(call.wx),
            s0=_maybe_at(call.s0),
            lengths=_maybe_at(call.lengths),
            resets=_maybe_at(call.resets),
            d_h=_maybe_at(d_h),
            d_states=_maybe_at(d_states),
            d_last=_maybe_at(d_last),
            d_wx=_at(gradients.d_wx),
            d_r=_at(gradients.d_r),
            d_b=_at(gradients.d_b),
            d_s0=_at(gradients.d_s0),
        )
        return gradients


def forward(
    wx: ArrayLike,
    r: ArrayLike,
    b: ArrayLike,
    s0: ArrayLike | None = None,
    cell: str = "lstm",
    *,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    time_major: bool = False,
    forward_clip: float | None = None,
    recurrent_grad_clip: float | None = None,
    cut_recurrent_grad: bool = False,
    save: str | None = None,
    threads: int = 0,
) -> Outputs:
    """Runs the recurrence `g_t = R h_{t-1} + x_t + b`, `s_t = P(s_{t-1}, g_t)` over all steps.

    Args:
        wx: `[B, T, Gx, N, D]`, the input pre-activations: W is applied already. float32, float64,
            float16, or bfloat16 of the package ml_dtypes.
        r: `[Gr, N, D_out, D_in]`, the recurrent weights of each head, of the dtype of `wx`, or
            float32 if `wx` has 16 bits.
        b: `[G, N, D]`, the bias, of the dtype of `r`.
        s0: `[S, B, N, D]`, the initial state; zeros if absent.
        cell: `elman`, `elman_relu`, `gru`, `lstm` or `slstm`.
        lengths: `[B]`, the number of steps of each row, 0 to T. Later outputs are zero.
        resets: `[B, T]`, true where the state is zeroed before the step.
        reverse: Whether time runs backwards, for each row from its own end.
        time_major: Whether `wx` is `[T, B, Gx, N, D]`, `states` `[S, T, B, N, D]`, `h`
            `[T, B, N, D]` and `resets` `[T, B]`.
        forward_clip: Clamps h to ± this number after each step.
        recurrent_grad_clip: Clamps the gradient that flows through R to ± this number.
        cut_recurrent_grad: Whether no gradient flows through R to the last h.
        save: What to save for `Outputs.backward`: None for nothing, `gates` for all gates, or
            `recompute` to save memory and compute the gates again.
        threads: The maximum number of threads. 0 stands for the environment variable
            `RAYON_NUM_THREADS` if it is a positive number, or else for all that the system offers.

    Raises:
        ValueError: A shape, a dtype, a length or an option is wrong.
        TypeError: An array cannot be cast to the dtype that it must have, such as lengths that are
            not integers.
    """
    options = Options(
        cell=cell,
        time_major=time_major,
        reverse=reverse,
        forward_clip=forward_clip,
        recurrent_grad_clip=recurrent_grad_clip,
        cut_recurrent_grad=cut_recurrent_grad,
        save=save or "gates",
    )
    wx, r = _native_order(np.asarray(wx)), _native_order(np.asarray(r))
    shapes = Shapes.of(options, wx.shape)
    plan = plan_on_cpu(shapes.describe(options, wx.dtype.name, r.dtype.name), threads)
    wide: DTypeLike = np.float64 if wx.dtype == np.float64 else np.float32
    r = _array("r", r, r.dtype, shapes.r)
    b = _array("b", b, r.dtype, shapes.b)
    s0 = _optional("s0", s0, wide, shapes.state)
    if lengths is not None:
        lengths = np.clip(lengths, *_INT32)
    if resets is not None:
        resets = np.not_equal(resets, 0)
    lengths = _optional("lengths", lengths, np.int32, (shapes.batch,))
    resets = _optional("resets", resets, np.bool_, shapes.resets)

    last = np.empty(shapes.state, wide)
    h = states = saved = None
    if save is None:
        h = np.empty(shapes.h, wx.dtype)
    else:
        states = np.empty(shapes.states, wx.dtype)
        gates_size, wide_size = saved_sizes(options, shapes, wx.dtype.name)
        saved = np.empty(gates_size, wx.dtype), np.empty(wide_size, wide)
    weights = plan.pack(_at(r), _at(b))
    plan.forward(
        weights,
        wx=_at(wx),
        s0=_maybe_at(s0),
        lengths=_maybe_at(lengths),
        resets=_maybe_at(resets),
        h=_maybe_at(h),
        states=_maybe_at(states),
        last=_at(last),
        saved=saved and (_at(saved[0]), _at(saved[1])),
    )
    if h is not None:
        return Outputs(h, last)
    assert states is not None and saved is not None
    done = _Pass(plan, shapes, weights, r.dtype, wx, s0, lengths, resets, saved)
    return Outputs(states[0], last, states, done)


def _native_order(array: _Array) -> _Array:
    """Returns the array contiguous, aligned, and in the machine's byte order."""
    return np.require(array, array.dtype.newbyteorder("="), _LAYOUT)


def _array(name: str, value: ArrayLike, dtype: DTypeLike, shape: tuple[int, ...]) -> _Array:
    """Returns a contiguous, aligned array of the dtype, after checking its shape."""
    array = np.asarray(value)
    check_shape(name, array.shape, shape)
    return np.require(array.astype(dtype, casting="same_kind", copy=False), None, _LAYOUT)


def _optional(
    name: str, value: ArrayLike | None, dtype: DTypeLike, shape: tuple[int, ...]
) -> _Array | None:
    """Does the same as `_array` for a value that may be absent."""
    return None if value is None else _array(name, value, dtype, shape)


def _at(array: _Array) -> tuple[int, int]:
    """Returns the address and the size in bytes."""
    return array.ctypes.data, array.nbytes


def _maybe_at(array: _Array | None) -> tuple[int, int] | None:
    return None if array is None else _at(array)
