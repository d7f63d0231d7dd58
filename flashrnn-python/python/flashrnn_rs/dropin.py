"""The interface of the package FlashRNN: `flashrnn` and `FlashRNNConfig`.

A script that imports them from `flashrnn` imports them from `flashrnn_rs` instead, or calls
`flashrnn_rs.install()` before its imports. Axes are named by FlashRNN's letters: B rows, T time
steps, S states, G gates, H heads, D units of a head, P units of a head at the step before.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from flashrnn_rs._plans import CELLS, Options
from flashrnn_rs.functional import run

__all__ = ["FlashRNNConfig", "flashrnn", "install"]

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}

# The orders that each shape's axes may have.
_ORDERS = {
    f"{name}_shape": frozenset(map("".join, permutations(letters)))
    for name, letters in {
        "input": "BTGHD",
        "output": "SBTHD",
        "recurrent": "GHDP",
        "bias": "GHD",
    }.items()
}

# FlashRNN's backends that cast their inputs to the dtypes of the config, and all others. Here the
# tensors' device decides what runs.
_CASTING = ("cuda", "cuda_fused")
_BACKENDS = (*_CASTING, "vanilla", "vanilla_fwbw", "triton_fused", "auto")


@dataclass
class FlashRNNConfig:
    """FlashRNN's configuration, with its fields and derived values.

    Fields that only chose or tuned FlashRNN's kernels are kept and have no effect: `constants`,
    `simple_agg`, `batch_size`, the sizes, the dtypes other than those of w, r, b and s, and
    `trainable_r` and `trainable_b`.
    """

    backend: str = "cuda_fused"
    """Any of FlashRNN's; the tensors' device decides what runs. See `flashrnn` for casts."""
    function: str = "lstm"
    """The cell: `elman`, `gru`, `lstm`, `slstm`, or, here only, `elman_relu`."""
    gradient_recurrent_cut: bool = False
    """Whether no gradient flows through R."""
    gradient_recurrent_clipval: float | None = None
    """Clamps the gradient that flows through R to ± this number."""
    forward_clipval: float | None = None
    """Clamps h to ± this number after each step."""
    constants: dict[str, float] | None = None
    simple_agg: bool = True

    hidden_dim: int = -1
    num_heads: int = -1
    head_dim: int = -1
    num_states: int = 4
    num_gates_r: int = 4
    num_gates_w: int = 4
    num_gates_i: int = 4
    num_gates_t: int = 4
    batch_size: int = 8

    input_shape: str = "BTGHD"
    """The order of the axes of `Wx`. Of `TBGHD` and `BTGHD` no copy is made."""
    output_shape: str = "SBTHD"
    """The order of the axes of the states."""
    recurrent_shape: str = "GHDP"
    """The order of the axes of `R`."""
    bias_shape: str = "GHD"
    """The order of the axes of `b`."""

    dtype: str = "bfloat16"
    dtype_acc: str | None = "float32"
    dtype_b: str | None = None
    dtype_r: str | None = None
    dtype_w: str | None = None
    dtype_g: str | None = None
    dtype_s: str | None = None
    dtype_a: str | None = None
    enable_automatic_mixed_precision: bool = True
    trainable_r: list[bool] | bool = True
    trainable_b: list[bool] | bool = True
    initial_val: float | Sequence[float] = 0.0
    """The initial value of all states or of each, where no states are given."""

    @property
    def input_dim(self) -> int:
        """The number of values of `Wx` at a step."""
        return self.num_gates_w * self.hidden_dim

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that the others default to."""
        return _DTYPES[self.dtype]

    @property
    def torch_dtype_b(self) -> torch.dtype:
        """The dtype of the bias."""
        return _DTYPES[self.dtype_b or self.dtype]

    @property
    def torch_dtype_r(self) -> torch.dtype:
        """The dtype of the recurrent weights."""
        return _DTYPES[self.dtype_r or self.dtype]

    @property
    def torch_dtype_w(self) -> torch.dtype:
        """The dtype of the input."""
        return _DTYPES[self.dtype_w or self.dtype]

    @property
    def torch_dtype_s(self) -> torch.dtype:
        """The dtype of the states."""
        return _DTYPES[self.dtype_s or self.dtype_w or self.dtype]

    def __post_init__(self) -> None:
        """Checks the names, and derives the fields that were left out."""
        _check("backend", self.backend, _BACKENDS)
        _check("function", self.function, CELLS)
        for axes, orders in _ORDERS.items():
            _check(axes, getattr(self, axes), orders)
        dtypes = [f"dtype_{letter}" for letter in "wrbgsa"]
        self.dtype_b = self.dtype_b or self.dtype
        self.dtype_a = self.dtype_a or self.dtype_b
        self.dtype_r = self.dtype_r or self.dtype
        self.dtype_w = self.dtype_w or self.dtype
        self.dtype_s = self.dtype_s or self.dtype_w
        self.dtype_g = self.dtype_g or self.dtype_r
        for name in ("dtype", *dtypes):
            _check(name, getattr(self, name), _DTYPES)

        if self.num_heads <= 0:
            self.num_heads = 1 if self.head_dim <= 0 else self.hidden_dim // self.head_dim
        if self.head_dim <= 0:
            self.head_dim = self.hidden_dim // self.num_heads
        if self.hidden_dim <= 0:
            self.hidden_dim = self.num_heads * self.head_dim
        cell = CELLS[self.function]
        self.num_states = cell.states
        self.num_gates_r, self.num_gates_w = cell.recurrent, cell.external
        self.num_gates_i = self.num_gates_t = cell.gates
        self.constants = self.constants or {}
        self.simple_agg = self.function != "gru"


def flashrnn(
    Wx: Tensor,
    R: Tensor,
    b: Tensor,
    states: Tensor | None = None,
    function: str = "lstm",
    config: FlashRNNConfig | None = None,
    backend: str = "cuda_fused",
    dtype: str = "bfloat16",
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    save: str = "gates",
) -> tuple[Tensor, Tensor]:
    """Runs a recurrent network over all time steps, as the function of the same name of FlashRNN.

    The shapes below are the defaults; a config may order the axes otherwise. Differences from
    FlashRNN: every option works with every backend name, `forward_clipval` has its own value, and
    carried states are never rounded to 16 bits.

    Args:
        Wx: `[B, T, G, H, D]`, the input pre-activations: W is applied already.
        R: `[G, H, D, P]`, the recurrent weights.
        b: `[G, H, D]`, the bias.
        states: `[S, B, 1, H, D]`, the initial states.
        function: The cell: `elman`, `gru`, `lstm` or `slstm`.
        config: Replaces `function`, `backend` and `dtype`. With the backends `cuda` and
            `cuda_fused` and `enable_automatic_mixed_precision`, tensors are cast to its dtypes.
        backend: Any of FlashRNN's; the tensors' device decides what runs.
        dtype: Accepted for FlashRNN's sake; tensors keep their dtypes, as without a config there.
        lengths: `[B]`, the number of steps of each row.
        resets: `[B, T]`, in the order of B and T of `Wx`; true where the states are zeroed before
            the step.
        reverse: Whether time runs backwards, for each row from its own end.
        save: What is saved for the backward pass: `gates` or `recompute`.

    Returns:
        `states [S, B, T, H, D]`, all states at all steps, and `last [S, B, 1, H, D]`, the states
        that each row ends in, both of one dtype.
    """
    if config is None:
        _, _, _, heads, head_dim = Wx.shape
        config = FlashRNNConfig(
            backend=backend, function=function, num_heads=heads, head_dim=head_dim, dtype=dtype
        )
    elif config.backend in _CASTING and config.enable_automatic_mixed_precision:
        Wx = Wx.to(config.torch_dtype_w)
        R, b = R.to(config.torch_dtype_r), b.to(config.torch_dtype_b)
    R, b = weights_of_one_dtype(R, b, Wx.dtype)
    time_major = config.input_shape.index("T") < config.input_shape.index("B")
    wx_axes, states_axes = ("TBGHD", "STBHD") if time_major else ("BTGHD", "SBTHD")
    if states is None:
        s0 = _initial_states(config, Wx)
    else:
        s0 = _ordered(states, config.output_shape, "TSBHD").squeeze(0)
    options = Options(
        cell=config.function,
        time_major=time_major,
        reverse=reverse,
        forward_clip=config.forward_clipval,
        recurrent_grad_clip=config.gradient_recurrent_clipval,
        cut_recurrent_grad=config.gradient_recurrent_cut,
        save=save,
    )
    out, last = run(
        options,
        _ordered(Wx, config.input_shape, wx_axes),
        _ordered(R, config.recurrent_shape, "GHDP"),
        _ordered(b, config.bias_shape, "GHD"),
        s0,
        lengths,
        resets,
        all_states=True,
    )
    last = last.to(out.dtype).unsqueeze(0)
    last = _ordered(last, "TSBHD", config.output_shape)
    return _ordered(out, states_axes, config.output_shape), last


def install() -> None:
    """Makes `import flashrnn`, from now on, import this module in place of FlashRNN."""
    sys.modules["flashrnn"] = sys.modules["flashrnn.flashrnn"] = sys.modules[__name__]


def _check(name: str, got: str, known: Collection[str]) -> None:
    if got not in known:
        raise ValueError(f"{name}: got {got}, wanted one of {', '.join(sorted(known))}")


def _ordered(tensor: Tensor, axes: str, order: str) -> Tensor:
    """Returns a view of the tensor whose axes are in another order."""
    return tensor if axes == order else tensor.permute([axes.index(axis) for axis in order])


def _initial_states(config: FlashRNNConfig, wx: Tensor) -> Tensor | None:
    """Returns `[S, B, H, D]` of the config's initial values, or None if they are zero."""
    values = config.initial_val
    if isinstance(values, (int, float)):
        values = [values] * config.num_states
    if not any(values):
        return None
    sizes = dict(zip(config.input_shape, wx.shape, strict=True))
    each = torch.tensor(values, dtype=torch.float32, device=wx.device)
    return each.view(-1, 1, 1, 1).expand(-1, sizes["B"], sizes["H"], sizes["D"])


def weights_of_one_dtype(r: Tensor, b: Tensor, element: torch.dtype) -> tuple[Tensor, Tensor]:
    """Casts R and b, without loss, to one dtype that weights may have beside tensors of `element`.

    FlashRNN lets them differ.
    """
    dtype = torch.promote_types(r.dtype, b.dtype)
    if dtype != torch.float32 or element == torch.float64:
        dtype = torch.promote_types(dtype, element)
    return r.to(dtype), b.to(dtype)
