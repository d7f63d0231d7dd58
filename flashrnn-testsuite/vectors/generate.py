"""Writes the test vectors: recurrences computed by PyTorch in float64 with autograd, in flashrnn's
shapes.

    python generate.py        (needs torch and safetensors; writes *.safetensors beside this file)

The input weights of nn.LSTM, nn.GRU and nn.RNN are the identity, so that their input is flashrnn's
wx and its gradient d_wx. Each head is a separate module. A reversed vector is the second direction
of a bidirectional module. The sLSTM is written without the stabiliser m, which cancels in h:
c' = sigma(f) c + exp(i) tanh z, n' = sigma(f) n + exp(i), h' = sigma(o) c' / n'.

Inputs are rounded to float32, so that backends without float64 can use them too.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "scripts"))

import whole_file  # noqa: E402  (found by the line above)

# For each gate in flashrnn's order, its index in PyTorch's weight_hh. GRU: n_h, r, z from r, z, n.
RECURRENT = {"lstm": [0, 1, 2, 3], "gru": [2, 0, 1], "elman": [0]}
MODULE = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}


def normal(*shape, scale=1.0):
    return (scale * torch.randn(*shape, dtype=torch.float32)).double()


def vector(cell, B, T, N, D, lengths=None, initial=False, reverse=False):
    order = RECURRENT[cell]
    G, S = len(order), 2 if cell == "lstm" else 1
    suffix = "_reverse" if reverse else ""
    direction = 1 if reverse else 0

    wx = normal(B, T, G, N, D)
    s0 = normal(S, B, N, D) * 0.5 if initial else None
    d_h, d_last = normal(B, T, N, D), normal(S, B, N, D)
    if lengths is not None:
        for b, length in enumerate(lengths):
            d_h[b, length:] = 0
    names = ["r", "b", "h", "last", "d_wx", "d_r", "d_b"] + (["d_s0"] if initial else [])
    heads = {name: [] for name in names}

    for n in range(N):
        module = MODULE[cell](G * D, D, batch_first=True, bidirectional=reverse).double()
        p = {name: value for name, value in module.named_parameters()}
        with torch.no_grad():
            for name, value in p.items():
                value.copy_(normal(*value.shape, scale=1 / D**0.5))
            p["weight_ih_l0" + suffix].copy_(torch.eye(G * D))
            if cell != "gru":  # only one of the two biases is nonzero, so that their sum is exact
                p["bias_ih_l0" + suffix].zero_()
            else:  # the same for r and z; b_in and b_hn are separate biases
                p["bias_ih_l0" + suffix][: 2 * D].zero_()
        w_hh, b_ih, b_hh = (p[k + suffix] for k in ("weight_hh_l0", "bias_ih_l0", "bias_hh_l0"))

        x = wx[:, :, :, n, :].reshape(B, T, G * D).clone().requires_grad_()
        state = None
        if initial:
            # PyTorch: [directions, B, D] each
            mine = [s0[k, :, n, :].clone().requires_grad_() for k in range(S)]
            full = [torch.stack([torch.zeros_like(m), m] if reverse else [m]) for m in mine]
            state = tuple(full) if cell == "lstm" else full[0]
        given = x
        if lengths is not None:
            given = torch.nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            )
        h, last = module(given, state)
        if lengths is not None:
            h, _ = torch.nn.utils.rnn.pad_packed_sequence(h, batch_first=True, total_length=T)
        h = h[:, :, direction * D : direction * D + D]
        last = torch.stack([k[direction] for k in (last if cell == "lstm" else (last,))])
        ((h * d_h[:, :, n]).sum() + (last * d_last[:, :, n]).sum()).backward()

        gates = lambda v, order: torch.stack([v.view(G, D, *v.shape[1:])[k] for k in order])
        if cell == "gru":
            # n_h, r, z, n_x
            bias = lambda ih, hh, both: torch.stack(
                [hh[2 * D :], both[:D], both[D : 2 * D], ih[2 * D :]]
            )
            heads["b"].append(bias(b_ih, b_hh, b_ih + b_hh).detach())
            heads["d_b"].append(bias(b_ih.grad, b_hh.grad, b_ih.grad))
        else:
            heads["b"].append((b_ih + b_hh).detach().view(G, D))
            heads["d_b"].append(b_ih.grad.view(G, D))
        heads["r"].append(gates(w_hh.detach(), order))
        heads["d_r"].append(gates(w_hh.grad, order))
        heads["h"].append(h.detach())
        heads["last"].append(last.detach())
        heads["d_wx"].append(x.grad.view(B, T, G, D))
        if initial:
            heads["d_s0"].append(torch.stack([m.grad for m in mine]))

    axis = {"r": 1, "d_r": 1, "b": 1, "d_b": 1, "h": 2, "last": 2, "d_wx": 3, "d_s0": 2}
    out = {name: torch.stack(parts, axis[name]).contiguous() for name, parts in heads.items()}
    out |= {"wx": wx, "d_h": d_h, "d_last": d_last}
    if initial:
        out["s0"] = s0
    if lengths is not None:
        out["lengths"] = torch.tensor(lengths, dtype=torch.int32)
    if reverse:
        out["reverse"] = torch.ones(1, dtype=torch.uint8)
    return out


def slstm(B, T, N, D):
    wx, d_h = normal(B, T, 4, N, D).requires_grad_(), normal(B, T, N, D)
    r = normal(4, N, D, D, scale=1 / D**0.5).requires_grad_()
    b = normal(4, N, D).requires_grad_()
    h = c = n = torch.zeros(B, N, D, dtype=torch.float64)
    hs = []
    for t in range(T):
        recurrent = torch.einsum("gnij,bnj->gbni", r, h)
        i, f, z, o = (recurrent + wx[:, t].transpose(0, 1) + b[:, None]).unbind(0)
        c = f.sigmoid() * c + i.exp() * z.tanh()
        n = f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        hs.append(h)
    h = torch.stack(hs, 1)
    (h * d_h).sum().backward()
    out = {"wx": wx, "r": r, "b": b, "h": h, "d_h": d_h}
    out |= {"d_wx": wx.grad, "d_r": r.grad, "d_b": b.grad}
    return {name: value.detach().contiguous() for name, value in out.items()}


def main():
    torch.manual_seed(0)
    # The order matters, since all draw from one generator.
    for name, make in [
        ("lstm", lambda: vector("lstm", 2, 5, 2, 5)),
        (
            "lstm_reverse",
            lambda: vector("lstm", 3, 6, 1, 7, lengths=[4, 6, 1], initial=True, reverse=True),
        ),
        ("gru", lambda: vector("gru", 3, 4, 2, 3, lengths=[2, 4, 3], initial=True)),
        ("gru_reverse", lambda: vector("gru", 2, 6, 1, 9, initial=True, reverse=True)),
        ("elman", lambda: vector("elman", 3, 7, 3, 5, initial=True)),
        ("elman_reverse", lambda: vector("elman", 2, 5, 1, 11, lengths=[5, 2], reverse=True)),
        ("slstm", lambda: slstm(2, 6, 2, 5)),
    ]:
        whole_file.write(HERE / f"{name}.safetensors", save(make()))


if __name__ == "__main__":
    main()
