"""Compares the errors of the CUDA backend with those of the package flashrnn (FlashRNN's kernels).

    pip install torch safetensors flashrnn
    cargo build --release -p flashrnn-cli --features cuda
    python scripts/compare_gpu.py target/release/flashrnn

All compute the same problems in bfloat16: Wx and b from N(0, 1), R from N(0, 1)/√D, and the
gradient of h from N(0, 1). The results are compared with those of a float64 loop in PyTorch on the
GPU, and of its autograd. The error of a tensor is the norm of the difference over the norm of the
exact tensor. Rounding the exact result to bfloat16 alone costs about 1.7e-3.

The package flashrnn is left out if it is not installed. It compiles its kernels at the first call
of each shape, which takes about a minute. For speed, see compare_gpu_speed.py.
"""

import argparse
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

# cell, N, D
WORKLOADS = [("lstm", 12, 64), ("lstm", 3, 256), ("lstm", 1, 768), ("gru", 3, 256)]
STATES = {"lstm": 2, "gru": 1}
EXTERNAL = {"lstm": 4, "gru": 3}
PEERS = ("cuda", "cuda_fused")
TENSORS = ("states", "d_Wx", "d_R", "d_b")


def lstm(s, x, ry, b):
    i, f, z, o = (x + ry + b).unbind(1)
    c = f.sigmoid() * s[1] + i.sigmoid() * z.tanh()
    return [o.sigmoid() * c.tanh(), c]


def gru(s, x, ry, b):
    n_h, r, z, n_x = (
        ry[:, 0] + b[0],
        x[:, 0] + ry[:, 1] + b[1],
        x[:, 1] + ry[:, 2] + b[2],
        x[:, 2] + b[3],
    )
    z = z.sigmoid()
    return [z * s[0] + (1 - z) * (n_x + r.sigmoid() * n_h).tanh()]


POINTWISE = {"lstm": lstm, "gru": gru}


def exact(cell, wx, r, b, d_h):
    """Computes the operator in float64, and its gradients by autograd."""
    wx, r, b = (x.double().requires_grad_() for x in (wx, r, b))
    B, T, _, N, D = wx.shape
    s, states = [wx.new_zeros(B, N, D) for _ in range(STATES[cell])], []
    for x in wx.unbind(1):
        s = POINTWISE[cell](s, x, torch.einsum("gnij,bnj->bgni", r, s[0]), b)
        states.append(torch.stack(s))
    states = torch.stack(states, 2)  # [S, B, T, N, D]
    states[0].backward(d_h.double())
    return dict(zip(TENSORS, (states.detach(), wx.grad, r.grad, b.grad)))


def ours(binary, backend, kernel, cell, wx, r, b, d_h):
    """Computes h and the gradients with the command."""
    d_states = torch.zeros(STATES[cell], *d_h.shape, dtype=d_h.dtype)
    d_states[0] = d_h
    with tempfile.TemporaryDirectory() as folder:
        problem, result = os.path.join(folder, "in.safetensors"), os.path.join(
            folder, "out.safetensors"
        )
        tensors = {"Wx": wx, "R": r, "b": b, "d_states": d_states}
        save_file({name: x.cpu().contiguous() for name, x in tensors.items()}, problem)
        options = [
            "--cell",
            cell,
            "--dtype",
            "bf16",
            "--backend",
            backend,
            "--backward",
            "--output",
            result,
        ]
        options += ["--kernel", kernel] if kernel else []
        subprocess.run([binary, "run", problem, *options], check=True)
        return load_file(result, device=str(wx.device))


def flashrnn():
    """Returns the package's function, None if it is not installed."""
    try:
        import flashrnn.flashrnn
    except ImportError as error:
        print(f"flashrnn can't be imported ({error}): left out", file=sys.stderr)
        return None
    module = sys.modules[
        "flashrnn.flashrnn.flashrnn"
    ]  # its namesake in the package is the function
    # FlashRNN 1.0.8 queries device properties that CUDA 13 no longer has, but uses only those
    # below.
    device = torch.cuda.get_device_properties(0)
    module.get_gpu_info = lambda device_id=0: {
        "maxThreadsPerBlock": 1024,
        "regsPerMultiprocessor": 65536,
        "multiProcessorCount": device.multi_processor_count,
        "sharedMemPerBlockOptin": device.shared_memory_per_block_optin,
    }
    return module.flashrnn


def theirs(function, backend, cell, wx, r, b, d_h):
    """Computes h and the gradients with the package flashrnn."""
    wx, r, b = (x.clone().requires_grad_() for x in (wx, r, b))
    states, _ = function(wx, r, b, function=cell, backend=backend, dtype="bfloat16")
    states[0].backward(d_h)
    return dict(zip(TENSORS, (states.detach(), wx.grad, r.grad, b.grad)))


def errors(got, want):
    """Returns the relative error of each tensor, of states one by one."""
    pairs = [(name, got[name], want[name]) for name in TENSORS[1:]]
    pairs = [*zip(("h", "c"), got["states"], want["states"]), *pairs]
    return {name: ((g.double() - w).norm() / w.norm()).item() for name, g, w in pairs}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", help="the flashrnn command, built with --release --features cuda")
    parser.add_argument("--backend", default="cuda", help="the command's backend")
    parser.add_argument(
        "--kernel", choices=("auto", "fused", "alternating"), help="the backend cuda's kernels"
    )
    parser.add_argument("--device", default="cuda", help="the device on which PyTorch computes")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument(
        "--only", type=int, nargs="*", help="the workloads to run, by number from 0"
    )
    args = parser.parse_args()
    peer = flashrnn() if args.device == "cuda" else None
    where = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    print(
        f"{where}, bfloat16, B = {args.batch}, T = {args.seq_len}, "
        f"PyTorch {torch.__version__}: relative errors\n"
    )
    print("| cell | N | D | by | h | c | d_Wx | d_R | d_b |\n|---|---|---|---|---|---|---|---|---|")
    for number in range(len(WORKLOADS)) if args.only is None else args.only:
        cell, N, D = WORKLOADS[number]
        torch.manual_seed(number)
        normal = lambda *shape: torch.randn(*shape, device=args.device)
        wx = normal(args.batch, args.seq_len, EXTERNAL[cell], N, D).bfloat16()
        r, b = (normal(EXTERNAL[cell], N, D, D) / D**0.5).bfloat16(), normal(4, N, D).bfloat16()
        problem = cell, wx, r, b, normal(args.batch, args.seq_len, N, D).bfloat16()
        want = exact(*problem)
        calls = {
            f"flashrnn-rs.{args.backend}": lambda: ours(
                args.binary, args.backend, args.kernel, *problem
            )
        }
        for backend in PEERS if peer else ():
            calls[f"flashrnn.{backend}"] = lambda backend=backend: theirs(peer, backend, *problem)
        for name, call in calls.items():
            try:
                found = errors(call(), want)
            except subprocess.CalledProcessError as error:
                sys.exit(error.returncode)
            except Exception as error:  # a peer that does not support this
                print(
                    f"{name}: {cell} {N}x{D}: {type(error).__name__}: {str(error)[:200]}",
                    file=sys.stderr,
                )
                continue
            columns = (
                f"{found[x]:.1e}" if x in found else "" for x in ("h", "c", "d_Wx", "d_R", "d_b")
            )
            print(f"| {cell} | {N} | {D} | {name} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
