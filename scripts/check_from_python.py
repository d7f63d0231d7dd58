"""Checks the command `flashrnn run` against PyTorch autograd in float64.

    pip install torch safetensors numpy
    cargo build --release -p flashrnn-cli
    python scripts/check_from_python.py target/release/flashrnn

The operator below is written from its equations and shares no code with the Rust crates. Every cell
runs with every option except --tf32, alone and together, and every element type; inputs are exact
in the element type. The error of a tensor is the norm of the difference over the norm of the
expected value. If it exceeds the bar of the element type, the exit status is 1.
"""

import argparse
import os
import subprocess
import sys
import tempfile

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

# States, gates, gates with recurrent input (the first), gates with external input (the last).
CELLS = {"elman": (1, 1, 1, 1), "gru": (1, 4, 3, 3), "lstm": (2, 4, 4, 4), "slstm": (4, 4, 4, 4)}
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
BARS = {"f64": 1e-9, "f32": 5e-6, "bf16": 1.5e-2, "f16": 2e-3}


class ClampForward(torch.autograd.Function):
    """clamp(h, -v, v), whose gradient passes where |h| <= v."""

    @staticmethod
    def forward(ctx, h, v):
        ctx.save_for_backward(h.abs() <= v)
        return h.clamp(-v, v)

    @staticmethod
    def backward(ctx, d):
        (inside,) = ctx.saved_tensors
        return d * inside, None


class ClampGradient(torch.autograd.Function):
    """The identity, whose gradient is clamped to ±v."""

    @staticmethod
    def forward(ctx, h, v):
        ctx.v = v
        return h.view_as(h)

    @staticmethod
    def backward(ctx, d):
        return d.clamp(-ctx.v, ctx.v), None


def guard(x, bounded):
    """Returns the value of `bounded` with the gradient of x."""
    return x + (bounded - x).detach()


def elman(s, g):
    return [torch.tanh(g[0])]


def gru(s, g):
    n_h, r, z, n_x = g
    z = torch.sigmoid(z)
    return [z * s[0] + (1 - z) * torch.tanh(n_x + torch.sigmoid(r) * n_h)]


def lstm(s, g):
    i, f, z, o = g
    c = torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(z)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def slstm(s, g):
    """m is constant in every gradient; max and min only guard."""
    (_, c, n, m), (i, f, z, o) = s, g
    l = F.logsigmoid(f) + m.detach()
    m = torch.where(n == 0, i, torch.maximum(i, l)).detach()
    input, forget = torch.exp(i - m), torch.exp(guard(l - m, (l - m).clamp(max=0)))
    c = forget * c + input * torch.tanh(z)
    n = forget * n + input
    n = guard(n, n.clamp(min=1))
    return [torch.sigmoid(o) * c / n, c, n, m]


def slstm_all_gradients(s, g):
    """The same with the gradient of m too. The max has no effect where n is 0 or at least 1."""
    (_, c, n, m), (i, f, z, o) = s, g
    l = F.logsigmoid(f) + m
    m = torch.where(n == 0, i, torch.maximum(i, l))
    input, forget = torch.exp(i - m), torch.exp((l - m).clamp(max=0))
    c = forget * c + input * torch.tanh(z)
    n = forget * n + input
    return [torch.sigmoid(o) * c / n, c, n, m]


def slstm_plain(s, g):
    """Without the stabilizer: c and n at full size, which m only rescales. m is unused."""
    (_, c, n, m), (i, f, z, o) = s, g
    c = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(z)
    n = torch.sigmoid(f) * n + torch.exp(i)
    return [torch.sigmoid(o) * c / n, c, n, m]


POINTWISE = {"elman": elman, "gru": gru, "lstm": lstm, "slstm": slstm}


def operator(cell, x, o, pointwise=None):
    """Returns states [S,B,T,N,D], last [S,B,N,D] and h' before the clip, for every step and row."""
    S, G, Gr, Gx = CELLS[cell]
    pointwise = pointwise or POINTWISE[cell]
    wx, r, b = x["Wx"], x["R"], x["b"]
    B, T, _, N, D = wx.shape
    lengths = x.get("lengths", torch.full((B,), T))
    s = list(x["states"]) if "states" in x else [wx.new_zeros(B, N, D) for _ in range(S)]
    if pointwise is slstm:
        s[3] = s[3].detach()
    if pointwise is slstm_plain:
        s[1], s[2] = s[1] * s[3].exp(), s[2] * s[3].exp()
    rows, steps, unclipped = torch.arange(B), [], []
    for k in range(T):
        runs = (k < lengths)[:, None, None]
        at = (lengths - 1 - k if o.get("reverse") else torch.full((B,), k)).clamp(min=0)
        before = s
        if "resets" in x:
            reset = (x["resets"][rows, at] != 0)[:, None, None]
            before = [torch.where(reset, 0.0, v) for v in before]
        h = before[0]
        if o.get("cut_recurrent_grad"):
            h = h.detach()
        elif "recurrent_grad_clip" in o:
            h = ClampGradient.apply(h, o["recurrent_grad_clip"])
        recurrent = torch.einsum("gnij,bnj->gbni", r, h)
        g = [
            b[q]
            + (recurrent[q] if q < Gr else 0)
            + (wx[rows, at, q - (G - Gx)] if q >= G - Gx else 0)
            for q in range(G)
        ]
        after = pointwise(before, g)
        unclipped.append(after[0].detach()[(k < lengths)])
        if "forward_clip" in o:
            after = [ClampForward.apply(after[0], o["forward_clip"])] + after[1:]
        s = [torch.where(runs, new, old) for new, old in zip(after, s)]
        steps.append(torch.stack(s))
    last = torch.stack(s)
    if T == 0:
        return wx.new_zeros(S, B, 0, N, D), last, wx.new_zeros(0)
    t = torch.arange(T).expand(B, T)
    k = (lengths[:, None] - 1 - t).clamp(min=0) if o.get("reverse") else t
    states = torch.stack(steps)[k, :, rows[:, None]].permute(2, 0, 1, 3, 4)  # from [B, T, S, N, D]
    states = torch.where((t < lengths[:, None])[None, :, :, None, None], states, 0.0)
    return states, last, torch.cat([u.flatten() for u in unclipped])


def wanted(cell, x, o, pointwise=None):
    """Returns every tensor that the command must write, from float64 inputs."""
    leaves = {
        n: v.clone().requires_grad_() for n, v in x.items() if n in ("Wx", "R", "b", "states")
    }
    if "states" not in leaves:
        B, _, _, N, D = x["Wx"].shape
        leaves["states"] = torch.zeros(
            CELLS[cell][0], B, N, D, dtype=torch.float64, requires_grad=True
        )
    states, last, _ = operator(cell, {**x, **leaves}, o, pointwise)
    loss = (states * x.get("d_states", torch.zeros(()))).sum() + (
        last * x.get("d_last_states", torch.zeros(()))
    ).sum()
    names = list(leaves)
    grads = torch.autograd.grad(loss, [leaves[n] for n in names], allow_unused=True)
    grads = {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(names, grads)}
    return {
        "states": states.detach(),
        "last_states": last.detach(),
        "d_Wx": grads["Wx"],
        "d_R": grads["R"],
        "d_b": grads["b"],
        "d_states_initial": grads["states"],
    }


def make(cell, dtype, sizes, o, seed):
    """Makes random inputs in float64, each exact in `dtype`."""
    S, G, Gr, Gx = CELLS[cell]
    B, T, N, D = sizes
    gen = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)
    exact = lambda v: v.to(DTYPES[dtype]).double()
    x = {
        "Wx": exact(normal(B, T, Gx, N, D)),
        "R": exact(normal(Gr, N, D, D) / D**0.5),
        "b": exact(normal(G, N, D)),
    }
    if o.get("initial"):  # the state that an earlier run ends in
        earlier = {**x, "Wx": normal(B, 3, Gx, N, D)}
        x["states"] = exact(operator(cell, earlier, {})[1])
    if o.get("lengths"):
        x["lengths"] = torch.randint(0, T + 1, (B,), generator=gen)
        x["lengths"][0] = 0
    if o.get("resets"):
        x["resets"] = torch.rand(B, T, generator=gen) < 0.25
    if o.get("extreme"):  # a third of the first external gates: the input gate where a cell has one
        gate = x["Wx"][:, :, 0]
        gate[torch.rand(gate.shape, generator=gen) < 0.33] = -90.0
    x["d_states"] = exact(normal(S, B, T, N, D))
    if not o.get("d_states_only"):
        x["d_last_states"] = exact(normal(S, B, N, D))
    if o.get("loss_on_h"):
        x["d_states"][1:] = 0
        x["d_last_states"][1:] = 0
    return x


def away_from_the_edge(cell, x, o):
    """Returns a forward clip near 0.4 to which no |h'| is close.

    The gradient jumps there, so rounding would decide.
    """
    best, widest = 0.4, -1.0
    for v in (0.3 + 0.2 * k / 63 for k in range(64)):
        v = float(torch.tensor(v, dtype=torch.bfloat16))
        h = operator(cell, x, {**o, "forward_clip": v})[2].abs()
        distance = (h - v).abs().min().item() if h.numel() else 1.0
        if distance > widest:
            best, widest = v, distance
    return best


def swap(v, first):
    return v.transpose(first, first + 1).contiguous()


def run(binary, folder, cell, dtype, x, o, stored):
    """Returns what the command writes for x, batch-major in float64.

    `stored` is the type of the floats in the file.
    """
    tensors = {n: v.to(stored) if v.is_floating_point() else v for n, v in x.items()}
    outer = {"Wx": 0, "resets": 0, "d_states": 1}
    if o.get("time_major"):
        tensors = {n: swap(v, outer[n]) if n in outer else v for n, v in tensors.items()}
    if o.get("narrow_lengths"):
        tensors["lengths"] = tensors["lengths"].to(torch.int32)
        tensors["resets"] = tensors["resets"].to(torch.uint8)
    source, target = os.path.join(folder, "in.safetensors"), os.path.join(folder, "out.safetensors")
    save_file({n: v.contiguous() for n, v in tensors.items()}, source)
    command = [binary, "run", source, "-o", target, "--cell", cell, "--dtype", dtype, "--backward"]
    for name in ("reverse", "cut_recurrent_grad", "time_major"):
        if o.get(name):
            command.append("--" + name.replace("_", "-"))
    for name in ("forward_clip", "recurrent_grad_clip", "save"):
        if name in o:
            command += ["--" + name.replace("_", "-"), str(o[name])]
    subprocess.run(command, check=True)
    got = load_file(target)
    os.remove(target)
    wide = torch.float64 if dtype == "f64" else torch.float32
    for n, v in got.items():
        want = wide if n in ("last_states", "d_states_initial") else DTYPES[dtype]
        assert v.dtype == want, f"{n} is {v.dtype}, wanted {want}"
    if o.get("time_major"):
        got = {
            n: swap(v, {"states": 1, "d_Wx": 0}[n]) if n in ("states", "d_Wx") else v
            for n, v in got.items()
        }
    return {n: v.double() for n, v in got.items()}


def error(got, want):
    if got.shape != want.shape or got.isnan().any():
        return float("inf")
    difference = (got - want).norm().item()
    return (
        difference / want.norm().item()
        if difference and want.norm()
        else (float("inf") if difference else 0.0)
    )


SMALL, ODD = (3, 7, 2, 5), (2, 5, 3, 33)
ALONE = [
    ("plain", SMALL, {}),
    ("lengths, one 0", (4, 9, 2, 5), {"lengths": True}),
    ("resets", SMALL, {"resets": True}),
    ("reverse", SMALL, {"reverse": True}),
    ("forward clip", SMALL, {"forward_clip": True}),
    ("recurrent grad clip", SMALL, {"recurrent_grad_clip": 0.25}),
    ("cut recurrent grad", SMALL, {"cut_recurrent_grad": True}),
    ("recompute", SMALL, {"save": "recompute"}),
    ("time-major", SMALL, {"time_major": True}),
    ("initial state", SMALL, {"initial": True}),
    ("input gates of -90", SMALL, {"extreme": True}),
    ("gradient of states only", SMALL, {"d_states_only": True}),
    ("one of everything", (1, 1, 1, 1), {}),
    ("T = 0", (3, 0, 2, 5), {"initial": True}),
    ("odd sizes", ODD, {}),
    ("17 heads", (5, 4, 17, 3), {"initial": True}),
    ("129 units", (2, 6, 1, 129), {"initial": True, "lengths": True}),
    ("long", (2, 65, 2, 31), {"save": "recompute"}),
]
ROWS = {"lengths": True, "resets": True, "narrow_lengths": True}
ALL = {
    **ROWS,
    "reverse": True,
    "initial": True,
    "recurrent_grad_clip": 0.25,
    "forward_clip": True,
    "extreme": True,
}
TOGETHER = [
    ("lengths + resets + reverse", (4, 9, 2, 5), {**ROWS, "reverse": True}),
    ("lengths + resets + initial, odd", (5, 9, 3, 31), {**ROWS, "initial": True}),
    (
        "reverse + both clips",
        SMALL,
        {"reverse": True, "forward_clip": True, "recurrent_grad_clip": 0.25},
    ),
    ("cut + clip (cut wins)", SMALL, {"cut_recurrent_grad": True, "recurrent_grad_clip": 0.01}),
    ("-90 + resets + recompute", ODD, {"extreme": True, "resets": True, "save": "recompute"}),
    ("all", (4, 7, 2, 5), ALL),
    ("all, recompute", (4, 7, 2, 5), {**ALL, "save": "recompute"}),
    ("all, time-major", (4, 7, 2, 5), {**ALL, "time_major": True}),
    (
        "all, time-major, recompute, cut",
        (4, 7, 2, 5),
        {**ALL, "time_major": True, "save": "recompute", "cut_recurrent_grad": True},
    ),
]
# A loss on h: the gradients with m held constant are those of the whole function.
EXACT = [
    ("exact gradient, s0 = 0", ODD, {"loss_on_h": True}),
    ("exact gradient, s0 = earlier last", ODD, {"loss_on_h": True, "initial": True}),
    (
        "exact gradient, lengths + resets + reverse",
        (4, 9, 2, 5),
        {**ROWS, "loss_on_h": True, "initial": True, "reverse": True},
    ),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", help="the flashrnn command")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    worst, failures, total = {}, [], 0

    def check(folder, cell, dtype, name, sizes, o, x, stored, pointwise=None):
        want = wanted(cell, x, o, pointwise)
        got = run(args.binary, folder, cell, dtype, x, o, stored)
        if pointwise:
            # Of the states, only h is compared, because the others may be scaled differently. The
            # gradient of the initial m is not compared, because the command returns 0. Without the
            # stabilizer, the gradients of c and n also differ at n = 0, where the stabilized form
            # jumps: a fresh unit takes i for m.
            initial = 1 if pointwise is slstm_plain and "states" not in x else 3
            for n, first in ("states", 1), ("last_states", 1), ("d_states_initial", initial):
                want[n], got[n] = want[n][:first], got[n][:first]
        assert got.keys() == want.keys(), f"{sorted(got)}, wanted {sorted(want)}"
        largest = 0.0
        for n in want:
            e = error(got[n], want[n])
            worst[n, dtype] = max(worst.get((n, dtype), 0.0), e)
            largest = max(largest, e)
            if not e <= BARS[dtype]:
                failures.append(
                    f"{cell} {dtype}, {name}, {sizes}: {n} is off by {e:.1e}, "
                    f"the bar is {BARS[dtype]:.1e}"
                )
        return largest

    with tempfile.TemporaryDirectory() as folder:
        print("| cell | case | " + " | ".join(DTYPES) + " |\n|---|---|" + "---|" * len(DTYPES))
        for cell in CELLS:
            for number, (name, sizes, options) in enumerate(ALONE + TOGETHER):
                errors = []
                for dtype in DTYPES:
                    o = dict(options)
                    x = make(cell, dtype, sizes, o, 1000 * args.seed + number)
                    if "forward_clip" in o:
                        o["forward_clip"] = away_from_the_edge(cell, x, o)
                    # The file may hold any float type: here its own and float64 take turns.
                    stored = [DTYPES[dtype], torch.float64][number % 2]
                    errors.append(check(folder, cell, dtype, name, sizes, o, x, stored))
                    total += 1
                print(
                    f"| {cell} | {name} | " + " | ".join(f"{e:.1e}" for e in errors) + " |",
                    flush=True,
                )
        for pointwise in (slstm_all_gradients, slstm_plain):
            for number, (name, sizes, o) in enumerate(EXACT):
                x = make("slstm", "f64", sizes, o, 1000 * args.seed + number)
                name = f"{name}, {pointwise.__name__}"
                e = check(folder, "slstm", "f64", name, sizes, o, x, torch.float64, pointwise)
                total += 1
                print(f"| slstm | {name} | {e:.1e} | | | |", flush=True)
    print("\n| worst of each tensor | " + " | ".join(DTYPES) + " |\n|---|" + "---|" * len(DTYPES))
    for n in ("states", "last_states", "d_Wx", "d_R", "d_b", "d_states_initial"):
        print(f"| {n} | " + " | ".join(f"{worst[n, d]:.1e}" for d in DTYPES) + " |")
    print("| bar | " + " | ".join(f"{BARS[d]:.1e}" for d in DTYPES) + " |\n")
    print("\n".join(failures) or f"{total} runs, every tensor within its bar")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
