"""Fast, trainable recurrent networks: LSTM, GRU, Elman and sLSTM, with several heads.

`flashrnn_rs.numpy` works on NumPy arrays and needs nothing else. All other functions and classes
work on PyTorch tensors and need PyTorch, which is imported with the first of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flashrnn_rs._native import VERSION as __version__

if TYPE_CHECKING:
    from flashrnn_rs.conversion import convert as convert
    from flashrnn_rs.dropin import FlashRNNConfig as FlashRNNConfig
    from flashrnn_rs.dropin import flashrnn as flashrnn
    from flashrnn_rs.dropin import install as install
    from flashrnn_rs.functional import rnn as rnn
    from flashrnn_rs.modules import GRU as GRU
    from flashrnn_rs.modules import LSTM as LSTM
    from flashrnn_rs.modules import RNN as RNN
    from flashrnn_rs.modules import SLSTM as SLSTM
    from flashrnn_rs.stream import Stream as Stream

# Where the names that need PyTorch are defined.
_TORCH = {
    "GRU": "modules",
    "LSTM": "modules",
    "RNN": "modules",
    "SLSTM": "modules",
    "Stream": "stream",
    "convert": "conversion",
    "FlashRNNConfig": "dropin",
    "flashrnn": "dropin",
    "install": "dropin",
    "rnn": "functional",
}

__all__ = ["__version__", *_TORCH]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _TORCH:
        raise AttributeError(f"module 'flashrnn_rs' has no attribute {name!r}")
    try:
        module = import_module(f"flashrnn_rs.{_TORCH[name]}")
    except ModuleNotFoundError as error:
        if error.name == "torch":
            why = f"flashrnn_rs.{name} needs PyTorch: pip install 'flashrnn-rs[torch]'"
            raise ModuleNotFoundError(why, name="torch") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *_TORCH]
