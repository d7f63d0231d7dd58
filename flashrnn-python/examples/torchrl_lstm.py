"""An `LSTMModule` of TorchRL that runs whole batches of steps, with resets inside, in one call.

TorchRL's module splits a batch at every reset and pads the pieces (`recurrent_backend="pad"`), or
runs a loop (`scan`) or a Triton kernel (`triton`, on GPUs). `FlashLSTMModule` takes their place:
it has the same arguments, parameters and keys, and runs on the CPU and on GPUs.
"""

import torch
from tensordict import TensorDict
from torch.nn import functional as F
from torchrl.modules import LSTMModule

from flashrnn_rs import flashrnn


class FlashLSTMModule(LSTMModule):
    """TorchRL's `LSTMModule`, without projections and directions.

    At a reset, TorchRL continues with the hidden state that the batch holds for that step. Here it
    is zero, as it is in what TorchRL collects.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.lstm.bidirectional or self.lstm.proj_size:
            raise ValueError("lstm: wanted one direction and no projections")
        self.recurrent_backend = "scan"  # the route on which a module gets the flags of resets

    def _lstm_scan_with_resets(self, input, hidden0_in, hidden1_in, hidden, is_init):
        """Runs `input [B, T, input_size]` from the first of each row's hidden states."""
        lstm = self.lstm
        resets = is_init.clone()
        resets[:, 0] = False  # the hidden state of the first step is where the row starts
        ends = F.pad(is_init[:, 1:], (0, 1), value=True)[:, :, None]
        ended = []
        for k, (weight_ih, weight_hh, *biases) in enumerate(lstm.all_weights):
            if k > 0 and lstm.dropout:
                input = F.dropout(input, lstm.dropout, lstm.training)
            # [gates, heads, units, ...]: i, f, z, o, one head
            wx = F.linear(input, weight_ih).unflatten(2, (4, 1, -1))
            r = weight_hh.unflatten(0, (4, 1, -1))
            b = sum(biases) if biases else weight_ih.new_zeros(len(weight_ih))
            start = torch.stack([state[k] for state in hidden])[:, :, None, None]
            states, _ = flashrnn(
                wx, r, b.unflatten(0, (4, 1, -1)), start, function="lstm", resets=resets
            )
            h, c = states[..., 0, :]  # [B, T, hidden_size] each
            ended.append((h * ends, c * ends))
            input = h
        # The states at the last step of each episode, zeros elsewhere.
        h, c = (torch.stack(states, 2) for states in zip(*ended, strict=True))
        return input, h, c


if __name__ == "__main__":
    torch.manual_seed(0)
    B, T, I, H = 8, 32, 6, 16  # noqa: E741
    keys = {
        "in_keys": ["observation", "h", "c"],
        "out_keys": ["features", ("next", "h"), ("next", "c")],
    }
    sizes = {"input_size": I, "hidden_size": H, "num_layers": 2, "default_recurrent_mode": True}
    theirs = LSTMModule(**sizes, **keys)
    ours = FlashLSTMModule(**sizes, **keys)
    ours.load_state_dict(theirs.state_dict())
    batch = TensorDict(
        {
            "observation": torch.randn(B, T, I),
            "is_init": torch.rand(B, T, 1) < 0.1,
            "h": torch.zeros(B, T, 2, H),
            "c": torch.zeros(B, T, 2, H),
        },
        [B, T],
    )
    outputs = [module(batch.clone()) for module in (ours, theirs)]
    for output in outputs:
        output["features"].square().mean().backward()
    for key in keys["out_keys"]:
        torch.testing.assert_close(outputs[0][key], outputs[1][key], rtol=1e-4, atol=1e-5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    print("features, states and gradients are TorchRL's")
