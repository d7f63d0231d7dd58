r"""Finds head dimensions that are slower than their neighbours: D beside the next multiple of 8.

    python scripts/sweep_head_dims.py target/release/flashrnn
    python scripts/sweep_head_dims.py target/release/flashrnn --random 200 --seed 7 \
        --json sweep.jsonl

Times whole calls of `flashrnn bench` with T = 1024, forward and forward+backward, for a fixed list
of shapes and for random ones; the seed is printed. A shape may take 1.15 times as long as its
neighbour, D rounded up to a multiple of 8. Odd D may take 1.4 times as long, because its rows begin
in the middle of a word. A shape that takes longer is measured again, with its neighbour, before it
counts as a cliff. The exit status is 1 if there is a cliff.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

T = 1024
CELLS, DTYPES = ("lstm", "slstm", "gru", "elman"), ("bf16", "f16")
BATCHES, HEADS = (1, 2, 7, 8, 9, 16, 17, 24, 33, 48, 64), (1, 2, 3, 8)
# Batch, heads, head dimension: rows aligned to 8, 4 and 2 bytes, in clusters of 1 to 16 blocks.
FIXED = [
    (16, 1, D) for D in (20, 50, 60, 90, 100, 101, 150, 180, 250, 257, 300, 333, 350, 450, 500, 511)
]
FIXED += [
    (B, N, D)
    for B in (1, 64)
    for N, D in ((1, 100), (1, 257), (1, 300), (3, 150), (3, 151), (8, 50), (8, 51))
]
LIMIT, ODD_LIMIT = 1.15, 1.4
# Shapes that may be slower, with their reasons: {(cell, dtype, B, N, D): (limit, reason)}
EXCEPTIONS = {}
PASSES = ("fwd", "fwdbwd")


def neighbour(shape):
    cell, dtype, B, N, D = shape
    return cell, dtype, B, N, (D + 7) // 8 * 8


def limit(shape):
    if shape in EXCEPTIONS:
        return EXCEPTIONS[shape][0]
    return ODD_LIMIT if shape[4] % 2 else LIMIT


def times(binary, shape, budget):
    """Returns the median milliseconds of each pass; None if the command fails, which says why."""
    cell, dtype, B, N, D = shape
    sizes = {"cell": cell, "dtype": dtype, "batch": B, "heads": N, "head-dim": D, "seq-len": T}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    command = [binary, "bench", "--backend", "cuda", *options, "--json", "--budget", str(budget)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        print(f"{shape}: {run.stderr.strip()}", file=sys.stderr)
        return None
    return {row["pass"]: row["ms"] for row in map(json.loads, run.stdout.splitlines())}


def drawn(seed, count):
    """Draws shapes from a seed, about two fifths of them with odd D."""
    draw = random.Random(seed)
    shapes = []
    while len(shapes) < count:
        D = draw.randint(9, 512)
        if D % 2 and draw.random() < 0.5 or D % 8 == 0:
            continue
        shapes.append(
            (draw.choice(CELLS), draw.choice(DTYPES), draw.choice(BATCHES), draw.choice(HEADS), D)
        )
    return shapes


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("binary")
    parser.add_argument("--cells", default=",".join(CELLS), help="for the fixed list")
    parser.add_argument("--dtypes", default="bf16", help="for the fixed list")
    parser.add_argument("--random", type=int, default=40, help="the number of random shapes")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--budget", type=float, default=0.05, help="seconds for each pass of each shape"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilations at once")
    parser.add_argument("--json", help="a file to which one object per shape is appended")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.randrange(1 << 32)
    print(f"seed {seed}")
    shapes = [
        (cell, dtype, *sizes)
        for sizes in FIXED
        for dtype in args.dtypes.split(",")
        for cell in args.cells.split(",")
    ] + drawn(seed, args.random)

    # Compiles kernels first, several at once; the timed runs find them on disk.
    everything = sorted(set(shapes) | set(map(neighbour, shapes)))
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda shape: times(args.binary, shape, 0), everything))

    known, cliffs, failed = {}, [], 0
    for shape in shapes:
        beside = neighbour(shape)
        for again in range(3):
            for which in (beside, shape):
                if again or which not in known:
                    known[which] = times(args.binary, which, args.budget)
            if not known[shape] or not known[beside]:
                break
            ratios = {p: known[shape][p] / known[beside][p] for p in PASSES}
            if max(ratios.values()) <= limit(shape):
                break
        if not known[shape] or not known[beside]:
            failed += 1
            continue
        cell, dtype, B, N, D = shape
        row = {"cell": cell, "dtype": dtype, "B": B, "N": N, "D": D, "T": T}
        for p in PASSES:
            row |= {
                p: round(known[shape][p], 4),
                f"{p}_beside": round(known[beside][p], 4),
                f"{p}_ratio": round(ratios[p], 3),
            }
        cliff = max(ratios.values()) > limit(shape)
        if cliff:
            cliffs.append(shape)
        print(json.dumps(row), "CLIFF" if cliff else "", flush=True)
        if args.json:
            with open(args.json, "a") as file:
                print(json.dumps(row), file=file)
    print(f"{len(shapes)} shapes, {len(cliffs)} cliffs, {failed} failed")
    for shape in cliffs:
        print("cliff:", *shape)
    sys.exit(bool(cliffs or failed))


if __name__ == "__main__":
    main()
