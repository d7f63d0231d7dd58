"""A script for FlashRNN, which trains an sLSTM to continue sine waves.

It was written for the package `flashrnn`, and one import line was changed:
`from flashrnn import FlashRNNConfig, flashrnn`.
"""

import torch
from torch import nn

from flashrnn_rs import FlashRNNConfig, flashrnn

B, T, H, D = 8, 64, 2, 16  # rows, time steps, heads, units per head


class Model(nn.Module):
    """An sLSTM between two linear layers."""

    def __init__(self):
        super().__init__()
        self.config = FlashRNNConfig(
            function="slstm", backend="vanilla", num_heads=H, head_dim=D, dtype="float32"
        )
        self.w = nn.Linear(1, 4 * H * D, bias=False)
        self.r = nn.Parameter(torch.randn(4, H, D, D) / D)
        self.b = nn.Parameter(torch.zeros(4, H, D))
        self.out = nn.Linear(H * D, 1)

    def forward(self, x):
        wx = self.w(x).view(*x.shape[:2], 4, H, D)  # [B, T, G, H, D]
        states, _ = flashrnn(wx, self.r, self.b, config=self.config)  # [S, B, T, H, D]
        return self.out(states[0].flatten(2))


torch.manual_seed(0)
waves = torch.sin(0.3 * torch.arange(T + 1) + torch.arange(B)[:, None]).unsqueeze(2)
model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for step in range(201):
    loss = (model(waves[:, :-1]) - waves[:, 1:]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3}: loss {loss.item():.5f}")
