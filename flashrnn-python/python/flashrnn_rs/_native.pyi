"""The native module: plans that run on memory given by address.

A tensor is given as its address and its size in bytes. It must be contiguous and aligned, of the
plan's dtypes, and on the plan's device. The library checks the sizes.
"""

from flashrnn_rs._plans import Description

_Memory = tuple[int, int]

VERSION: str
"""The version of the package."""

class Weights:
    """R and b, packed for the kernels of a plan."""

class Plan:
    """A problem prepared to run on a device."""

    @staticmethod
    def cpu(description: Description, threads: int) -> Plan:
        """Makes a plan on the CPU. 0 threads means the default number."""
    @staticmethod
    def cuda(description: Description, ordinal: int, stream: int) -> Plan:
        """Makes a plan on a GPU whose work is enqueued on the raw handle `stream`."""
    @property
    def workspaces(self) -> tuple[int, int]:
        """The bytes of scratch memory of the forward and of the backward pass."""
    @property
    def packed_bytes(self) -> int:
        """The bytes of the memory of packed weights, 0 if the plan packs into memory of its own."""
    def pack(self, r: _Memory, b: _Memory, memory: _Memory | None = None) -> Weights:
        """Packs `r [Gr, N, D_out, D_in]` and `b [G, N, D]`.

        Weights on a GPU are in `memory`, of `packed_bytes` bytes, or, without it, in a buffer.
        """
    def packed(self, memory: _Memory) -> Weights:
        """Returns the weights that the plan of another stream has packed into `memory`."""
    def forward(
        self,
        weights: Weights,
        *,
        wx: _Memory,
        s0: _Memory | None = None,
        lengths: _Memory | None = None,
        resets: _Memory | None = None,
        h: _Memory | None = None,
        states: _Memory | None = None,
        last: _Memory | None = None,
        saved: tuple[_Memory, _Memory] | None = None,
        workspace: _Memory | None = None,
    ) -> None:
        """Runs the forward pass. Writes `h`, `states`, `last` and `saved`."""
    def backward(
        self,
        weights: Weights,
        *,
        states: _Memory,
        saved: tuple[_Memory, _Memory],
        d_wx: _Memory,
        wx: _Memory | None = None,
        s0: _Memory | None = None,
        lengths: _Memory | None = None,
        resets: _Memory | None = None,
        d_h: _Memory | None = None,
        d_states: _Memory | None = None,
        d_last: _Memory | None = None,
        d_r: _Memory | None = None,
        d_b: _Memory | None = None,
        d_s0: _Memory | None = None,
        workspace: _Memory | None = None,
    ) -> None:
        """Runs the backward pass. Writes `d_wx`, `d_r`, `d_b` and `d_s0`."""
    def step(
        self, weights: Weights, *, wx: _Memory, state: _Memory, h: _Memory | None = None
    ) -> None:
        """Advances `state` by one step, in place, and writes `h`."""

def cells() -> list[tuple[str, tuple[int, int, int, int]]]:
    """Returns, for each cell, its name, S, G, Gr and Gx."""

def saved_per_unit(cell: str, dtype: str, save: str) -> tuple[int, int]:
    """Returns how many elements per unit and step a forward pass saves, in `gates` and `wide`."""
