"""Trains LSTM layers with PyTorch's DistributedDataParallel, one process per GPU.

Checks that the gradients, in float32, are those of one process with the whole batch, and on GPUs
compares the throughput with that of one GPU:

    python benchmarks/data_parallel.py --processes 2 --device cuda

On the CPU (`--device cpu`), the processes share its cores, so only the gradients are checked.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from flashrnn_rs import LSTM

# 4 layers of 12 heads with 64 units, as in the table of throughputs.
LAYERS, HEADS, UNITS, BATCH, TIME = 4, 12, 64, 64, 1024
MAX_ERROR = 1e-5


def loss_of(model, x):
    return model(x)[0].float().square().mean()


def check_gradients(rank, processes, device, ids):
    """Compares gradients of shares of a batch with those of the whole batch."""
    torch.manual_seed(0)
    model = LSTM(8, 64, num_layers=2, batch_first=True, heads=2).to(device)
    x = torch.randn(4 * processes, 20, 8).to(device)
    want = torch.autograd.grad(loss_of(model, x), list(model.parameters()))
    parallel = DistributedDataParallel(model, device_ids=ids)
    loss_of(parallel, x.chunk(processes)[rank]).backward()
    for (name, parameter), wanted in zip(model.named_parameters(), want, strict=True):
        error = ((parameter.grad - wanted).norm() / wanted.norm()).item()
        if error > MAX_ERROR:
            raise SystemExit(f"rank {rank}: {name} differs by {error:.1e}")
    distributed.barrier()
    if rank == 0:
        print(f"the gradients of {processes} processes are those of the whole batch", flush=True)


def steps_per_second(model, x, steps=20):
    for count in (3, steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            model.zero_grad()
            loss_of(model, x).backward()
        torch.cuda.synchronize()
    return steps / (time.perf_counter() - start)


def compare_throughput(rank, processes, device, ids):
    size = HEADS * UNITS
    model = LSTM(size, size, LAYERS, batch_first=True, heads=HEADS, device=device)
    model.bfloat16()
    x = torch.randn(BATCH, TIME, size, device=device, dtype=torch.bfloat16)
    alone = steps_per_second(model, x) if rank == 0 else 0.0
    distributed.barrier()
    parallel = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    together = steps_per_second(parallel, x)
    if rank == 0:
        gain = processes * together / alone
        print(f"one GPU {alone:.2f} steps/s, each of {processes} {together:.2f}: {gain:.2f} times")


def run(rank, processes, kind, rendezvous):
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    ids = [rank] if kind == "cuda" else None
    if kind == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=processes,
    )
    check_gradients(rank, processes, device, ids)
    if kind == "cuda":
        compare_throughput(rank, processes, device, ids)
    distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = Path(folder, "rendezvous").as_uri()
        torch.multiprocessing.spawn(
            run, (args.processes, args.device, rendezvous), nprocs=args.processes
        )
