"""Measures how fast this project's CUDA backend is beside the package flashrnn (FlashRNN's CUDA kernels) and cuDNN.

    pip install torch matplotlib flashrnn
    cargo build --release -p flashrnn-cli --features cuda
    python scripts/compare_gpu_speed.py target/release/flashrnn --peers cuda_fused cuda cudnn --json speed.json
    python scripts/compare_gpu_speed.py --from speed.json --plot speed_gpu.svg

Whole calls on tensors that lie on the device, T = 1024, in milliseconds, medians. Forward is inference: h of every step and the last
states. Forward+backward: from the gradient of h to those of Wx, R, b and the initial state. cuDNN is PyTorch's nn.LSTM in
float16, where it has its fastest kernel; it also multiplies its input, 8 wide here.

The package flashrnn compiles its kernels for each shape, about a minute each: all at once, before anything is measured. How exact
everything is: compare_gpu.py.
"""
import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

T = 1024
# cell, dtype, B, N, D: 768 units in all, for the plot, and others.
OVER_HEAD_DIM = [("lstm", "bfloat16", 16, n, 768 // n) for n in (48, 24, 12, 6, 3, 1)]
OTHERS = [("lstm", "bfloat16", 16, 2, 512)]
OTHERS += [("lstm", "bfloat16", batch, 12, 64) for batch in (1, 64, 256)]
OTHERS += [(cell, "bfloat16", 16, n, 768 // n) for cell in ("slstm", "gru") for n in (12, 6, 3)]
OTHERS += [("lstm", "float32", 16, 12, 64)]
OURS, STEPWISE = "ours", "ours, a kernel a step"
# What each is called on the command line.
PEERS = {"cuda_fused": "FlashRNN cuda_fused", "cuda": "FlashRNN cuda", "cudnn": "cuDNN, f16"}
PASSES = {"fwd": "forward", "fwdbwd": "forward+backward"}
SHORT = {"bfloat16": "bf16", "float32": "f32"}


def ours(binary, kernel, workload, budget):
    cell, dtype, B, N, D = workload
    sizes = {"cell": cell, "dtype": SHORT[dtype], "batch": B, "heads": N, "head-dim": D, "seq-len": T, "kernel": kernel}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    command = [binary, "bench", "--backend", "cuda", *options, "--json", "--budget", str(budget)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {row["pass"]: row["ms"] for row in map(json.loads, lines)}


def median_ms(call, budget):
    import torch

    for _ in range(3):
        call()
    times = []
    while len(times) < 5 or sum(times) < 1000 * budget:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def passes(forward, gradients, budget):
    """Times of `forward` without gradients, and with the call of its result's backward."""
    import torch

    def both():
        h = forward()
        h.backward(torch.ones_like(h))
        for x in gradients:
            x.grad = None

    with torch.no_grad():
        times = {"fwd": median_ms(forward, budget)}
    return times | {"fwdbwd": median_ms(both, budget)}


def flashrnn_times(backend, workload, budget):
    """In this process. With a budget of 0, only so far that everything is compiled."""
    import torch

    from compare_gpu import EXTERNAL, flashrnn

    cell, dtype, B, N, D = workload
    function = flashrnn()
    normal = lambda *shape: torch.randn(*shape, device="cuda").bfloat16().requires_grad_()
    wx, r, b = normal(B, T, EXTERNAL[cell], N, D), normal(EXTERNAL[cell], N, D, D), normal(4, N, D)
    r.data /= D**0.5
    return passes(lambda: function(wx, r, b, function=cell, backend=backend, dtype=dtype)[0][0], (wx, r, b), budget)


def cudnn_times(workload, budget):
    import torch

    _, _, B, _, D = workload
    lstm = torch.nn.LSTM(8, D).to("cuda", torch.float16)
    x = torch.randn(T, B, 8, device="cuda", dtype=torch.float16, requires_grad=True)
    return passes(lambda: lstm(x)[0], (x, *lstm.parameters()), budget)


def elsewhere(extensions, name, workload, budget):
    """A peer in a process of its own: PyTorch keeps one folder of extensions a process."""
    folder = os.path.join(extensions, f"{name}-{'-'.join(map(str, workload))}")
    os.makedirs(folder, exist_ok=True)
    command = [sys.executable, __file__, "--one", json.dumps([name, workload, budget])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TORCH_EXTENSIONS_DIR": folder})
    if done.returncode:
        print(f"{name} {workload}: {done.stderr.strip().splitlines()[-1][:200]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def measure(args):
    """[by, workload, times by pass], one after the other: first our own, since all else takes long."""
    jobs = []
    if args.peers:
        shapes = [workload for workload in OVER_HEAD_DIM if workload[-1] >= 64]
        jobs = [(name, workload) for workload in shapes for name in args.peers if name != "cudnn" or workload[3] == 1]
        with ThreadPoolExecutor(len(jobs)) as pool:
            list(pool.map(lambda job: elsewhere(args.extensions, *job, 0), jobs))
    if args.compile:
        return
    for workload in OVER_HEAD_DIM + OTHERS:
        yield OURS, workload, ours(args.binary, "auto", workload, args.budget)
    for name, workload in jobs:
        yield PEERS[name], workload, elsewhere(args.extensions, name, workload, args.budget)
    for workload in OVER_HEAD_DIM:
        yield STEPWISE, workload, ours(args.binary, "alternating", workload, args.budget)


def table(rows):
    names = [name for name in (OURS, STEPWISE, *PEERS.values()) if any(by == name for by, *_ in rows)]
    print(f"| cell | | B | N × D | pass | {' | '.join(names)} |\n|---|---|---|---|---|{'---|' * len(names)}")
    for workload in dict.fromkeys(tuple(workload) for _, workload, _ in rows):
        cell, dtype, B, N, D = workload
        for key, what in PASSES.items():
            found = {by: times[key] for by, other, times in rows if tuple(other) == workload and key in times}
            columns = (f"{found[name]:.3g}" if name in found else "" for name in names)
            print(f"| {cell} | {SHORT[dtype]} | {B} | {N} × {D} | {what} | {' | '.join(columns)} |")


def plot(rows, path):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flashrnn"  # the same numbers, the same file
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.3), sharey=True, layout="constrained")
    over = {workload: workload[-1] for workload in OVER_HEAD_DIM}
    for panel, (key, what) in zip(panels, PASSES.items()):
        for name in dict.fromkeys(by for by, *_ in rows):
            points = [(over[tuple(w)], times[key]) for by, w, times in rows if by == name and tuple(w) in over and key in times]
            if points:
                panel.plot(*zip(*sorted(points)), marker="o", label=name)
        panel.set(title=what, xlabel="head dimension (768 units in all)", xscale="log", yscale="log")
        panel.set_xticks(list(over.values()), [str(D) for D in over.values()])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="milliseconds for 1024 steps")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle("LSTM, B = 16, bf16, one NVIDIA H200")
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", nargs="?", help="the flashrnn command, built with --release --features cuda")
    parser.add_argument("--budget", type=float, default=0.2, help="seconds for each time")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=(), help="whom to measure too")
    parser.add_argument("--compile", action="store_true", help="only compile the package's kernels")
    parser.add_argument("--extensions", default="/tmp/flashrnn_extensions", help="the folder they are kept in")
    parser.add_argument("--json", help="the file that keeps the times")
    parser.add_argument("--from", dest="source", help="such a file, instead of measuring")
    parser.add_argument("--plot", help="the SVG file to draw")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, workload, budget = json.loads(args.one)
        times = cudnn_times(workload, budget) if name == "cudnn" else flashrnn_times(name, workload, budget)
        print(json.dumps(times))
        return
    if args.source:
        with open(args.source) as file:
            rows = json.load(file)
    else:
        rows = []
        for row in measure(args):
            rows.append(row)
            if args.json:  # at once, so that nothing measured is lost
                with open(args.json, "w") as file:
                    json.dump(rows, file)
    table(rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
