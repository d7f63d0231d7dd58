"""Times the CPU backend beside others in one run, and prints a Markdown table.

    pip install torch onnx onnxruntime flashrnn
    cargo build --release -p flashrnn-cli
    python scripts/compare_cpu.py target/release/flashrnn --threads 2

The peers are PyTorch's nn.LSTM, nn.GRU and nn.RNN, the same modules in ONNX Runtime (forward only),
and the PyTorch backend ("vanilla") of the package flashrnn. A peer that is not installed is left
out, with a message on stderr.

- All take turns on each workload for several rounds, and the median over the rounds is reported. If
  the machine slows down, it does so for all of them.
- The nn modules read an input of width 8, so their time is nearly that of the recurrence alone,
  which is all that `flashrnn bench` computes.
- forward runs without gradients. forward+backward is forward, the sum of h as the loss, and the
  gradients of the input weights (of the pre-activations for vanilla and for us), R and b.

"ours / best" is our time over that of the fastest peer that has the pass; below 1 we are faster.
"""

import argparse
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import time
import warnings

import torch

# cell, B, T, N, D
WORKLOADS = [
    ("lstm", 1, 256, 1, 128),
    ("lstm", 1, 256, 1, 512),
    ("lstm", 1, 256, 1, 1024),
    ("lstm", 16, 256, 1, 128),
    ("lstm", 16, 256, 1, 512),
    ("lstm", 64, 256, 1, 512),
    ("gru", 1, 256, 1, 128),
    ("gru", 1, 256, 1, 512),
    ("gru", 16, 256, 1, 512),
    ("elman", 1, 256, 1, 512),
    ("elman", 16, 256, 1, 512),
    ("slstm", 16, 256, 4, 64),
    ("lstm", 16, 256, 12, 64),
    ("slstm", 16, 256, 3, 256),
]
PASSES = {"fwd": "forward", "fwdbwd": "forward+backward"}
MODULES = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}
EXTERNAL = {"lstm": 4, "slstm": 4, "gru": 3, "elman": 1}
BIASES = {"lstm": 4, "slstm": 4, "gru": 4, "elman": 1}


def found(package):
    if importlib.util.find_spec(package):
        return True
    print(f"{package} is not installed: left out", file=sys.stderr)
    return False


def repeat(call, budget):
    """Returns the median in milliseconds of at least five calls, after two to warm up."""
    for _ in range(2):
        call()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < budget:
        before = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - before))
    return statistics.median(times)


def modules(cell, B, T, D):
    """Returns PyTorch's module, its input, and a call for each pass."""
    module, x = MODULES[cell](8, D), torch.randn(T, B, 8)

    def forward():
        with torch.no_grad():
            module(x)

    def forward_backward():
        module(x)[0].sum().backward()
        module.zero_grad(set_to_none=True)

    return module, x, {"fwd": forward, "fwdbwd": forward_backward}


def onnx(module, x, threads):
    """Returns a call of the same module in ONNX Runtime."""
    import onnxruntime

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, input_names=["x"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": x.numpy()}
    return {"fwd": lambda: session.run(None, feed)}


def vanilla(cell, B, T, N, D):
    """Returns calls of FlashRNN's PyTorch backend, on pre-activations."""
    from flashrnn import flashrnn

    wx = torch.randn(B, T, EXTERNAL[cell], N, D, requires_grad=True)
    r = (torch.randn(EXTERNAL[cell], N, D, D) / D**0.5).requires_grad_()
    b = torch.randn(BIASES[cell], N, D, requires_grad=True)
    call = lambda: flashrnn(wx, r, b, function=cell, backend="vanilla", dtype="float32")

    def forward():
        with torch.no_grad():
            call()

    def forward_backward():
        call()[0][0].sum().backward()
        wx.grad = r.grad = b.grad = None

    return {"fwd": forward, "fwdbwd": forward_backward}


def ours(binary, workload, threads, budget):
    """Returns the milliseconds of each pass by the command."""
    options = zip(("--cell", "--batch", "--seq-len", "--heads", "--head-dim"), map(str, workload))
    command = [binary, "bench", "--json", "--threads", str(threads), "--budget", str(budget)]
    lines = subprocess.run(
        command + [word for option in options for word in option],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {row["pass"]: row["ms"] for row in map(json.loads, lines.splitlines())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", help="the flashrnn command, built with --release")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns that each takes on a workload"
    )
    parser.add_argument(
        "--budget", type=float, default=0.5, help="seconds for one measurement in a round"
    )
    parser.add_argument(
        "--only", type=int, nargs="*", help="the workloads to run, by number from 0"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    has_onnx = found("onnxruntime") and found("onnx")
    has_vanilla = found("flashrnn")
    print(f"{args.threads} threads, float32, PyTorch {torch.__version__}, milliseconds\n")
    print(
        "| cell | B | T | N | D | pass "
        "| ours | PyTorch | ONNX Runtime | FlashRNN vanilla | ours / best |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    worst = {}
    for number in range(len(WORKLOADS)) if args.only is None else args.only:
        workload = cell, B, T, N, D = WORKLOADS[number]
        torch.manual_seed(0)
        peers = {}
        if N == 1 and cell in MODULES:
            module, x, peers["torch"] = modules(cell, B, T, D)
            if has_onnx:
                peers["onnx"] = onnx(module, x, args.threads)
        # Slow, and informative only with several heads or without an nn module.
        if has_vanilla and (N > 1 or D == 512):
            peers["vanilla"] = vanilla(*workload)
        times = {}
        for _ in range(args.rounds):
            for what, ms in ours(args.binary, workload, args.threads, args.budget).items():
                times.setdefault(("ours", what), []).append(ms)
            for peer, calls in peers.items():
                for what, call in calls.items():
                    times.setdefault((peer, what), []).append(repeat(call, args.budget))
        median = {key: statistics.median(values) for key, values in times.items()}
        for what, name in PASSES.items():
            best = min(
                (ms for (peer, w), ms in median.items() if w == what and peer != "ours"),
                default=None,
            )
            ratio = median["ours", what] / best if best else None
            if ratio:
                group = "PyTorch or ONNX Runtime" if "torch" in peers else "FlashRNN vanilla"
                worst[group] = max(worst.get(group, 0.0), ratio)
            cells = [median.get((peer, what)) for peer in ("ours", "torch", "onnx", "vanilla")]
            shown = " | ".join("" if ms is None else f"{ms:.2f}" for ms in cells)
            print(
                f"| {cell} | {B} | {T} | {N} | {D} | {name} "
                f"| {shown} | {f'{ratio:.2f}' if ratio else ''} |",
                flush=True,
            )
    print()
    for group, ratio in worst.items():
        print(f"largest ours / best against {group}: {ratio:.2f}")


if __name__ == "__main__":
    main()
