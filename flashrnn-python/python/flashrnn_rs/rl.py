"""Recurrent networks in reinforcement learning, without a loop over time.

With sb3-contrib, one line takes `RecurrentPPO` over:

    RecurrentActorCriticPolicy._process_sequence = staticmethod(flashrnn_rs.rl.process_sequence)
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor, nn

from flashrnn_rs.conversion import convert
from flashrnn_rs.modules import LSTM

__all__ = ["process_sequence"]

# Ours for each of PyTorch's, with the same parameters.
_converted: WeakKeyDictionary[nn.Module, LSTM] = WeakKeyDictionary()


def process_sequence(
    features: Tensor,
    lstm_states: tuple[Tensor, Tensor],
    episode_starts: Tensor,
    lstm: nn.LSTM | LSTM,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Runs an LSTM over sequences in which episodes start anywhere.

    Has the interface of the method `_process_sequence` of sb3-contrib's
    `RecurrentActorCriticPolicy`, which loops over time as soon as one episode starts.

    Args:
        features: `[B * T, input_size]`, the steps of one sequence after those of another.
        lstm_states: h and c before the first step, each `[num_layers, B, hidden_size]`.
        episode_starts: `[B * T]`, nonzero where the states are zeroed before the step.
        lstm: The LSTM, with PyTorch's parameters. It is not bidirectional.

    Returns:
        The output, `[B * T, hidden_size]`, and h and c after the last step.
    """
    if lstm.bidirectional:
        raise ValueError("bidirectional: episodes are processed forwards only")
    ours = lstm if isinstance(lstm, LSTM) else _ours(lstm)
    batch = lstm_states[0].shape[1]
    sequences = features.reshape(batch, -1, lstm.input_size)
    starts = episode_starts.reshape(batch, -1)
    output, (h, c) = ours.run_padded(sequences, lstm_states, None, starts, batch_first=True)
    return output.flatten(0, 1), (h, c)


def _ours(lstm: nn.LSTM) -> LSTM:
    """Returns our LSTM with the parameters of PyTorch's."""
    ours = _converted.get(lstm)
    # Moving a module may give it other parameters.
    if ours is None or any(
        ours._parameters[name] is not parameter for name, parameter in lstm._parameters.items()
    ):
        new = convert(lstm)
        assert isinstance(new, LSTM)
        ours = _converted[lstm] = new
    return ours.train(lstm.training)
