#!/usr/bin/env python3
"""Compares two builds of the command, to show that a change makes nothing slower.

    scripts/compare_versions.py OLD NEW --backend cuda --rounds 20
    scripts/compare_versions.py OLD NEW --backend cuda --workloads lstm:bf16:16x1024x12x64

In each round the builds take turns: old, new, old. For each workload and pass, this prints the
median of the ratio new / old over the rounds with its 95 % interval (bootstrap), and beside it the
same for old / old, the variation of the machine itself. The exit status is 1 if an interval of
new / old ends above --limit.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys

WORKLOADS = {
    "cpu": [
        "lstm:f32:1x256x1x128",
        "lstm:f32:16x256x1x512",
        "gru:f32:1x256x1x512",
        "elman:f32:16x256x1x512",
        "slstm:f32:16x256x4x64",
        "lstm:f32:16x256x12x64",
        "slstm:f32:16x256x3x256",
    ],
    "cuda": [
        "lstm:bf16:16x1024x12x64",
        "lstm:bf16:16x1024x3x256",
        "lstm:bf16:16x1024x1x768",
        "slstm:bf16:16x1024x3x256",
        "gru:bf16:16x1024x3x256",
        "lstm:bf16:256x1024x12x64",
        "lstm:f32:16x1024x12x64",
    ],
    "wgpu": [
        "lstm:f16:16x256x12x64",
        "lstm:f16:16x256x3x256",
        "slstm:f32:16x256x6x128",
        "lstm:f32:16x256x1x512",
    ],
}


def times(command, backend, workload, budget, passes):
    """Returns the median milliseconds of each pass of a workload, in a process of its own."""
    cell, dtype, sizes = workload.split(":")
    batch, time, heads, head_dim = sizes.split("x")
    call = [
        command,
        "bench",
        "--json",
        "--backend",
        backend,
        "--cell",
        cell,
        "--dtype",
        dtype,
        "--batch",
        batch,
        "--seq-len",
        time,
        "--heads",
        heads,
        "--head-dim",
        head_dim,
        "--budget",
        str(budget),
    ]
    call += ["--passes", ",".join(passes)] if passes else []
    lines = subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()
    return {row["pass"]: row["ms"] for row in map(json.loads, lines)}


def interval(ratios):
    """Returns the median and its 95 % interval."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), medians[49], medians[1949]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--backend", choices=WORKLOADS, required=True)
    parser.add_argument("--workloads", nargs="+", metavar="CELL:DTYPE:BxTxNxD")
    parser.add_argument(
        "--passes", type=lambda list: list.split(","), help="of `flashrnn bench`, such as pack,step"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--budget", type=float, default=0.05, help="seconds for each measurement")
    parser.add_argument("--limit", type=float, default=1.03)
    args = parser.parse_args()
    slower = []
    for workload in args.workloads or WORKLOADS[args.backend]:
        rounds = [
            [
                times(build, args.backend, workload, args.budget, args.passes)
                for build in (args.old, args.new, args.old)
            ]
            for _ in range(args.rounds + 1)
        ]
        rounds = rounds[1:]  # kernels may have been compiled in the first
        for name in rounds[0][0]:
            new, new_low, new_high = interval([new[name] / old[name] for old, new, _ in rounds])
            same, same_low, same_high = interval(
                [again[name] / old[name] for old, _, again in rounds]
            )
            ms = statistics.median(old[name] for old, _, _ in rounds)
            print(
                f"{args.backend} {workload} {name:8} old {ms:9.3f} ms, "
                f"new / old {new:.3f} [{new_low:.3f}, {new_high:.3f}], "
                f"old / old {same:.3f} [{same_low:.3f}, {same_high:.3f}]",
                flush=True,
            )
            if new_high > args.limit:
                slower.append(f"{workload} {name}")
    if slower:
        sys.exit(f"may be slower than {args.limit} times the old build: {', '.join(slower)}")


if __name__ == "__main__":
    main()
