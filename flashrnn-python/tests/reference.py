"""The operator as a loop over time, in NumPy and float64."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def elman(state, gates):
    return [np.tanh(gates[0])]


def elman_relu(state, gates):
    return [np.maximum(gates[0], 0)]


def gru(state, gates):
    (h,), (n_h, r, z, n_x) = state, gates
    z = sigmoid(z)
    return [z * h + (1 - z) * np.tanh(n_x + sigmoid(r) * n_h)]


def lstm(state, gates):
    (_, c), (i, f, z, o) = state, gates
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
    return [sigmoid(o) * np.tanh(c), c]


def slstm(state, gates):
    (_, c, n, m), (i, f, z, o) = state, gates
    log_f = m - np.logaddexp(0, -f)
    m = np.where(n == 0, i, np.maximum(i, log_f))
    i, f = np.exp(i - m), np.exp(np.minimum(log_f - m, 0))
    c, n = f * c + i * np.tanh(z), np.maximum(f * n + i, 1)
    return [sigmoid(o) * c / n, c, n, m]


CELLS = {"elman": elman, "elman_relu": elman_relu, "gru": gru, "lstm": lstm, "slstm": slstm}
# S, G, Gr, Gx
SIZES = {
    "elman": (1, 1, 1, 1),
    "elman_relu": (1, 1, 1, 1),
    "gru": (1, 4, 3, 3),
    "lstm": (2, 4, 4, 4),
    "slstm": (4, 4, 4, 4),
}


def run(wx, r, b, s0=None, cell="lstm", *, lengths=None, resets=None, reverse=False, clip=np.inf):
    """Returns all states `[S, B, T, N, D]` and the last ones `[S, B, N, D]`."""
    s, g, gr, gx = SIZES[cell]
    batch, time, _, heads, dim = wx.shape
    states = np.zeros((s, batch, time, heads, dim))
    last = np.zeros((s, batch, heads, dim)) if s0 is None else np.array(s0, np.float64)
    for row in range(batch):
        steps = range(time if lengths is None else lengths[row])
        for t in reversed(steps) if reverse else steps:
            if resets is not None and resets[row, t]:
                last[:, row] = 0
            gates = np.array(b, np.float64)
            gates[:gr] += np.einsum("gnoi,ni->gno", r, last[0, row])
            gates[g - gx :] += wx[row, t]
            last[:, row] = CELLS[cell](last[:, row], gates)
            last[0, row] = np.clip(last[0, row], -clip, clip)
            states[:, row, t] = last[:, row]
    return states, last


def inputs(cell, batch=3, time=7, heads=2, dim=5, seed=0):
    """Returns random `wx`, `r`, `b`, and an `s0` that a run has ended in, in float64."""
    _, g, gr, gx = SIZES[cell]
    random = np.random.default_rng(seed)
    wx = random.normal(size=(batch, time, gx, heads, dim))
    r = random.normal(size=(gr, heads, dim, dim)) / np.sqrt(dim)
    b = random.normal(size=(g, heads, dim))
    return wx, r, b, run(random.normal(size=wx.shape), r, b, cell=cell)[1]
