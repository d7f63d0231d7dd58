"""Cells, the shapes of tensors, and plans, which are cached by all that they depend on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from flashrnn_rs import _native

__all__ = [
    "CELLS",
    "Cell",
    "Description",
    "Options",
    "Shapes",
    "check_shape",
    "plan_on_cpu",
    "saved_sizes",
]


class Cell(NamedTuple):
    """The sizes of a cell."""

    states: int
    """`S`"""
    gates: int
    """`G`"""
    recurrent: int
    """`Gr`, the number of gates that read the last h. They come first."""
    external: int
    """`Gx`, the number of gates that read the input. They come last."""


CELLS = {name: Cell(*sizes) for name, sizes in _native.cells()}
"""All cells by name."""


class Options(NamedTuple):
    """The cell and the options of a call."""

    cell: str
    time_major: bool = False
    reverse: bool = False
    forward_clip: float | None = None
    recurrent_grad_clip: float | None = None
    cut_recurrent_grad: bool = False
    tf32: bool = False
    save: str = "gates"


class Description(NamedTuple):
    """What a plan is made for."""

    dtype: str
    """The dtype of `wx` and the states."""
    weight_dtype: str
    """The dtype of `r` and `b`."""
    batch: int
    time: int
    heads: int
    head_dim: int
    options: Options


class Shapes(NamedTuple):
    """The shapes of a call's tensors, in the order of its layout."""

    batch: int
    time: int
    heads: int
    head_dim: int
    wx: tuple[int, ...]
    """`[B, T, Gx, N, D]`"""
    r: tuple[int, ...]
    """`[Gr, N, D_out, D_in]`"""
    b: tuple[int, ...]
    """`[G, N, D]`"""
    state: tuple[int, ...]
    """`[S, B, N, D]`"""
    h: tuple[int, ...]
    """`[B, T, N, D]`"""
    states: tuple[int, ...]
    """`[S, B, T, N, D]`"""
    resets: tuple[int, ...]
    """`[B, T]`"""

    @classmethod
    def of(cls, options: Options, wx: Sequence[int]) -> Shapes:
        """Derives all shapes from that of `wx`, whose number of gates is checked."""
        cell = CELLS.get(options.cell)
        if cell is None:
            known = ", ".join(CELLS)
            raise ValueError(f"cell: got {options.cell}, wanted one of {known}")
        if len(wx) != 5 or wx[2] != cell.external:
            axes = "T, B" if options.time_major else "B, T"
            raise ValueError(
                f"wx: got shape {list(wx)}, wanted [{axes}, {cell.external}, N, D] "
                f"for the cell {options.cell}"
            )
        outer, inner, _, n, d = wx
        batch, time = (inner, outer) if options.time_major else (outer, inner)
        return cls(
            batch=batch,
            time=time,
            heads=n,
            head_dim=d,
            wx=(outer, inner, cell.external, n, d),
            r=(cell.recurrent, n, d, d),
            b=(cell.gates, n, d),
            state=(cell.states, batch, n, d),
            h=(outer, inner, n, d),
            states=(cell.states, outer, inner, n, d),
            resets=(outer, inner),
        )

    @classmethod
    def of_states(cls, options: Options, states: Sequence[int]) -> Shapes:
        """Derives all shapes from that of `states`."""
        _, outer, inner, n, d = states
        return cls.of(options, (outer, inner, CELLS[options.cell].external, n, d))

    def describe(self, options: Options, dtype: str, weight_dtype: str) -> Description:
        """Describes the plan for these shapes."""
        sizes = (self.batch, self.time, self.heads, self.head_dim)
        return Description(dtype, weight_dtype, *sizes, options)


def check_shape(tensor: str, got: Sequence[int], want: Sequence[int]) -> None:
    """Raises a ValueError, in the library's words, if the shapes differ."""
    if tuple(got) != tuple(want):
        raise ValueError(f"{tensor}: got shape {list(got)}, wanted {list(want)}")


def saved_sizes(options: Options, shapes: Shapes, dtype: str) -> tuple[int, int]:
    """Returns the numbers of elements of `gates` and `wide`, which a forward pass saves."""
    unit_steps = shapes.batch * shapes.time * shapes.heads * shapes.head_dim
    gates, wide = _saved_per_unit(options.cell, dtype, options.save)
    return gates * unit_steps, wide * unit_steps


_saved_per_unit = lru_cache(_native.saved_per_unit)


@lru_cache(maxsize=128)
def plan_on_cpu(description: Description, threads: int) -> _native.Plan:
    """Returns the plan for the CPU. 0 threads stand for the default number."""
    return _native.Plan.cpu(description, threads)


# A forked child makes plans of its own, with threads of its own.
os.register_at_fork(after_in_child=plan_on_cpu.cache_clear)
