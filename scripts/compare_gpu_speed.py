r"""Times the CUDA backend beside the package flashrnn (FlashRNN's CUDA kernels) and cuDNN.

    pip install torch safetensors matplotlib flashrnn
    cargo build --release -p flashrnn-cli --features cuda
    python scripts/compare_gpu_speed.py --peers cuda_fused,cuda,cudnn --compile 8
    python scripts/compare_gpu_speed.py target/release/flashrnn --peers cuda_fused,cuda,cudnn \
        --json speed.json
    python scripts/compare_gpu_speed.py --from speed.json --plot speed_gpu.svg

Prints a Markdown table of medians in milliseconds of whole calls on tensors in device memory, with
T = 1024. Forward is inference: h of every step and the last states. Forward+backward computes the
gradients of Wx, R, b and, for us alone, the initial state from the gradient of h. Our times are
taken by the command's clock until the device is done, the peers' by CUDA events.

cuDNN is PyTorch's nn.LSTM, in bfloat16 and in float16, for which it has a faster kernel. It
multiplies its input too, which is as wide as the state: with a narrow input it does not choose that
kernel and is several times slower.

The package flashrnn compiles its kernels for each shape, which takes a minute or more per shape.
This happens before anything is measured, for several shapes at once; the first command does nothing
else. For accuracy, see compare_gpu.py.
"""

import argparse
import glob
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import whole_file

T = 1024
LIMIT = 600  # seconds after which a peer's process is stopped
# cell, dtype, B, N, D: 768 units in all, for the plot, and others.
OVER_HEAD_DIM = [("lstm", "bfloat16", 16, n, 768 // n) for n in (48, 24, 12, 6, 3, 1)]
OTHERS = [("lstm", "bfloat16", 16, 2, 512)]
OTHERS += [("lstm", "bfloat16", batch, 12, 64) for batch in (1, 64, 256)]
OTHERS += [(cell, "bfloat16", 16, n, 768 // n) for cell in ("slstm", "gru") for n in (12, 6, 3)]
OTHERS += [("lstm", "float32", 16, 12, 64)]
OURS, STEPWISE = "ours", "ours, per-step kernels"
# Names on the command line and in the table.
PEERS = {
    "cuda_fused": ["FlashRNN cuda_fused"],
    "cuda": ["FlashRNN cuda"],
    "cudnn": ["cuDNN, bf16", "cuDNN, f16"],
}
NAMES = [OURS, STEPWISE, *sum(PEERS.values(), [])]
PASSES = {"fwd": "forward", "fwdbwd": "forward+backward"}
SHORT = {"bfloat16": "bf16", "float32": "f32"}


def label(workload):
    """Returns the sizes and what differs from LSTM, B = 16, bf16: slstm-12x64, 12x64-B64."""
    cell, dtype, B, N, D = workload
    words = (
        (cell, cell != "lstm"),
        (f"{N}x{D}", True),
        (f"B{B}", B != 16),
        ("f32", dtype == "float32"),
    )
    return "-".join(word for word, shown in words if shown)


WORKLOADS = {label(workload): workload for workload in OVER_HEAD_DIM + OTHERS}


def ours(binary, kernel, workload, budget):
    """Returns the times of each pass by the command, and the device."""
    cell, dtype, B, N, D = workload
    sizes = {
        "cell": cell,
        "dtype": SHORT[dtype],
        "batch": B,
        "heads": N,
        "head-dim": D,
        "seq-len": T,
        "kernel": kernel,
    }
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    command = [binary, "bench", "--backend", "cuda", *options, "--json", "--budget", str(budget)]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    times = {}  # incomplete if the command fails, which then says why
    for row in map(json.loads, lines):
        times |= {row["pass"]: row["ms"], "device": row["device"]}
    return times


def median_ms(call, budget):
    import torch

    for _ in range(3):
        call()
    times = []
    while len(times) < 5 or sum(times) < 1000 * budget:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def passes(forward, inputs, budget):
    """Times `forward` without gradients, and with the backward pass of its result."""
    import torch

    d_h = torch.ones_like(forward())

    def both():
        forward().backward(d_h)
        for x in inputs:
            x.grad = None

    with torch.no_grad():
        times = {"fwd": median_ms(forward, budget)}
    return times | {"fwdbwd": median_ms(both, budget)}


def flashrnn_times(backend, workload, budget):
    import random

    import torch

    from compare_gpu import flashrnn

    function = flashrnn() or sys.exit(1)
    random.random = (
        lambda: 0.0
    )  # it sleeps up to 10 s before it compiles or loads, against a race that can't be here
    cell, dtype, B, N, D = workload
    G = 3 if cell == "gru" else 4
    normal = lambda *shape: torch.randn(*shape, device="cuda")
    tensors = normal(B, T, G, N, D), normal(G, N, D, D) / D**0.5, normal(4, N, D)
    tensors = [x.to(getattr(torch, dtype)).requires_grad_() for x in tensors]
    forward = lambda: function(*tensors, function=cell, backend=backend, dtype=dtype)[0][0]
    return {PEERS[backend][0]: passes(forward, tensors, budget)}


def cudnn_times(workload, budget):
    import torch

    _, _, B, _, D = workload
    found = {}
    for column, dtype in zip(PEERS["cudnn"], (torch.bfloat16, torch.float16)):
        lstm = torch.nn.LSTM(D, D).to("cuda", dtype)
        x = torch.randn(T, B, D, device="cuda").to(dtype).requires_grad_()
        found[column] = passes(lambda: lstm(x)[0], (x, *lstm.parameters()), budget)
    return found


def can(peer, workload):
    """Returns whether a peer supports this. FlashRNN runs no GRU fused, cuDNN has one head."""
    cell, dtype, _, N, _ = workload
    return {
        "cuda_fused": cell != "gru",
        "cuda": True,
        "cudnn": (cell, dtype, N) == ("lstm", "bfloat16", 1),
    }[peer]


def elsewhere(extensions, peer, workload, budget):
    """Runs a peer in a process of its own, with its own folder of extensions.

    Returns its times by column, or none if it fails.
    """
    folder = os.path.join(os.path.abspath(extensions), f"{peer}-{label(workload)}")
    os.makedirs(folder, exist_ok=True)
    for path in glob.glob(f"{folder}/**/lock", recursive=True):
        os.remove(path)  # left by a killed run: PyTorch would wait for it forever
    command = [sys.executable, __file__, "--one", peer, label(workload), str(budget)]
    options = {
        "env": {"MAX_JOBS": "3"} | os.environ | {"TORCH_EXTENSIONS_DIR": folder},
        "text": True,
        "errors": "replace",
    }
    with open(f"{folder}/log", "w+") as log:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=log, timeout=LIMIT, check=True, **options
            )
            if not budget:
                print(f"{peer} {label(workload)} is ready", file=sys.stderr, flush=True)
            return json.loads(done.stdout.splitlines()[-1])  # after what the compiler says
        except subprocess.SubprocessError as error:
            log.seek(0)
            last = (log.read().strip().splitlines() or [""])[-1][:200]
            status = getattr(error, "returncode", f"longer than {LIMIT} s")
            print(
                f"{peer} {label(workload)} is left out ({status}): {last} (more in {folder}/log)",
                file=sys.stderr,
                flush=True,
            )
            return {}


def measure(args, jobs):
    """Yields [by, workload, times by pass], our own first, because the peers take long."""
    with ThreadPoolExecutor(args.compile or os.cpu_count()) as pool:
        done = list(pool.map(lambda job: elsewhere(args.extensions, *job, 0), jobs))
    if args.compile:
        return
    for workload in WORKLOADS.values():
        yield OURS, workload, ours(args.binary, "auto", workload, args.budget)
    for peer, workload in (job for job, times in zip(jobs, done) if times):
        for name, times in elsewhere(args.extensions, peer, workload, args.budget).items():
            yield name, workload, times
    for workload in OVER_HEAD_DIM:
        yield STEPWISE, workload, ours(args.binary, "alternating", workload, args.budget)


def table(rows):
    names = [name for name in NAMES if any(by == name for by, *_ in rows)]
    print(
        f"| cell | | B | N × D | pass | {' | '.join(names)} |\n"
        f"|---|---|---|---|---|{'---|' * len(names)}"
    )
    for workload in dict.fromkeys(tuple(workload) for _, workload, _ in rows):
        cell, dtype, B, N, D = workload
        for key, what in PASSES.items():
            found = {
                by: times[key]
                for by, other, times in rows
                if tuple(other) == workload and key in times
            }
            columns = (f"{found[name]:#.3g}".rstrip(".") if name in found else "" for name in names)
            sizes = f"{cell} | {SHORT[dtype]} | {B} | {N} × {D}"
            print(f"| {sizes} | {what} | {' | '.join(columns)} |")


def plot(rows, path):
    try:
        import matplotlib
    except ImportError:
        print(f"matplotlib is not installed: {path} is not drawn", file=sys.stderr)
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flashrnn"  # equal numbers make equal files
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.3), sharey=True, layout="constrained")
    ticks, lines = [workload[-1] for workload in OVER_HEAD_DIM], {}
    for panel, (key, what) in zip(panels, PASSES.items()):
        for number, name in enumerate(NAMES):
            own = [(tuple(workload), times) for by, workload, times in rows if by == name]
            points = sorted(
                (workload[-1], times[key])
                for workload, times in own
                if workload in OVER_HEAD_DIM and key in times
            )
            if points:
                (lines[name],) = panel.plot(*zip(*points), marker="o", color=f"C{number}")
        panel.set(
            title=what, xlabel="head dimension (768 units in all)", xscale="log", yscale="log"
        )
        panel.set_xticks(ticks, map(str, ticks))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set(ylabel=f"milliseconds for {T} steps")
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(NAMES))
    devices = dict.fromkeys(times["device"] for _, _, times in rows if "device" in times)
    figure.suptitle(", ".join(["LSTM, B = 16, bf16", *devices]))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    whole_file.write(path, drawn.getvalue())


def words(parser, option, given, known):
    """Splits names at commas or spaces."""
    found = [word for word in ",".join(given).split(",") if word]
    for word in found:
        if word not in known:
            parser.error(f"{option}: got {word}, wanted some of {', '.join(known)}")
    return list(dict.fromkeys(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "binary", nargs="?", help="the flashrnn command, built with --release --features cuda"
    )
    parser.add_argument("--budget", type=float, default=0.2, help="seconds for each time")
    parser.add_argument(
        "--peers", nargs="+", default=[], help=f"peers to measure: {', '.join(PEERS)}"
    )
    parser.add_argument(
        "--peer-workloads",
        nargs="+",
        default=["12x64,6x128,3x256,1x768"],
        help=", ".join(WORKLOADS),
    )
    parser.add_argument(
        "--compile",
        type=int,
        nargs="?",
        const=os.cpu_count(),
        metavar="N",
        help="only compile the peers' kernels, N at once",
    )
    parser.add_argument(
        "--extensions",
        default="/tmp/flashrnn_extensions",
        help="the folder for what the peers compile",
    )
    parser.add_argument(
        "--json", help="a file for the times, kept if the run is interrupted"
    )
    parser.add_argument("--from", dest="source", help="read the times from such a file")
    parser.add_argument("--plot", help="the SVG file to draw")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        peer, workload, budget = args.one[0], WORKLOADS[args.one[1]], float(args.one[2])
        print(
            json.dumps(
                cudnn_times(workload, budget)
                if peer == "cudnn"
                else flashrnn_times(peer, workload, budget)
            )
        )
        return
    if args.source:
        with open(args.source) as file:
            rows = json.load(file)
    else:
        args.peers = words(parser, "--peers", args.peers, PEERS)
        asked = words(parser, "--peer-workloads", args.peer_workloads, WORKLOADS)
        jobs = [
            (peer, WORKLOADS[name])
            for name in asked
            for peer in args.peers
            if can(peer, WORKLOADS[name])
        ]
        if not (args.binary or args.compile):
            parser.error("the flashrnn command is missing")
        if args.compile and not jobs:
            parser.error("--compile is for --peers")
        rows = []
        for row in measure(args, jobs):
            rows.append(row)
            if args.json:  # after each row, so that an interrupted run keeps its times
                whole_file.write(args.json, json.dumps(rows).encode())
    if args.compile:
        return
    table(rows)
    if args.plot:
        plot(rows, args.plot)
    if not args.source and any(
        by in (OURS, STEPWISE) and not times.keys() >= PASSES.keys() for by, _, times in rows
    ):
        sys.exit("the command failed on a workload")


if __name__ == "__main__":
    main()
