"""Writes the vectors of the tests in torch.rs and xlstm.rs, computed by PyTorch in float32.

    python generate.py      (needs torch, xlstm 2.0.6 and safetensors; writes *.safetensors here)

{lstm,gru,rnn}.safetensors hold a module of two layers in both directions: its parameters before
and after 20 steps of AdamW under before.NAME and after.NAME, the input x [B, T, I] and the target
of the mean squared error, the output y [B, T, 2·H] and the final state h_n [L, B, H] (LSTM: also
c_n), and packed.y, packed.h_n (packed.c_n) for rows of the given lengths.

slstm.safetensors holds an sLSTM cell of three heads: its parameters as the backends vanilla and
cuda arrange them, its input [B, T, 4·N·D], its output y [B, T, N·D] and final state [4, B, N·D].
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from xlstm.blocks.slstm.cell import sLSTMCell_cuda, sLSTMCell_vanilla, sLSTMCellConfig

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[2] / "scripts"))

import whole_file  # noqa: E402  (found by the line above)

BATCH, TIME, INPUT, HIDDEN = 3, 7, 5, 6
STEPS = 20


def write(name, tensors):
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    whole_file.write(HERE / f"{name}.safetensors", save(tensors))


def named_states(prefix, states):
    states = states if isinstance(states, tuple) else (states,)
    return {prefix + name: state for name, state in zip(["h_n", "c_n"], states)}


def parameters(prefix, module):
    return {prefix + name: value.detach().clone() for name, value in module.named_parameters()}


def module(name, kind):
    torch.manual_seed(0)
    rnn = kind(INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
    x = torch.randn(BATCH, TIME, INPUT)
    target = torch.randn(BATCH, TIME, 2 * HIDDEN)
    lengths = torch.tensor([7, 2, 4])
    y, last = rnn(x)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed_y, packed_last = rnn(packed)
    packed_y, _ = pad_packed_sequence(packed_y, batch_first=True, total_length=TIME)
    tensors = {"x": x, "target": target, "y": y, "lengths": lengths, "packed.y": packed_y}
    tensors |= named_states("", last) | named_states("packed.", packed_last)
    tensors |= parameters("before.", rnn)

    optimizer = torch.optim.AdamW(rnn.parameters(), lr=0.01, weight_decay=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(rnn(x)[0], target).backward()
        optimizer.step()
    write(name, tensors | parameters("after.", rnn))


def slstm():
    torch.manual_seed(0)
    heads, head_dim = 3, 4
    config = sLSTMCellConfig(
        hidden_size=heads * head_dim,
        num_heads=heads,
        backend="vanilla",
        dtype="float32",
        output_shape="BSH",
    )
    vanilla = sLSTMCell_vanilla(config)
    cuda = sLSTMCell_cuda(config, skip_backend_init=True)
    kernel = torch.randn(heads, head_dim, 4, head_dim) / head_dim**0.5
    bias = torch.randn(heads, 4, head_dim)
    tensors = {}
    with torch.no_grad():
        for name, cell in [("vanilla.", vanilla), ("cuda.", cuda)]:
            cell._recurrent_kernel_.copy_(cell._recurrent_kernel_ext2int(kernel))
            cell._bias_.copy_(cell._bias_ext2int(bias))
            tensors |= parameters(name, cell)
        x = torch.randn(BATCH, TIME, 4 * heads * head_dim)
        y, last = vanilla(x)
    write("slstm", tensors | {"x": x, "y": y, "last": last})


module("lstm", torch.nn.LSTM)
module("gru", torch.nn.GRU)
module("rnn", torch.nn.RNN)
slstm()
