// The part of a step that one block of a per-step kernel computes.
//
// programs/sources.rs defines these macros:
//
//   UNITS     units of a head per block
//   ROWS      batch rows per block
//   WARPS     warps per block, which split k
//   MULTIPLY  the arithmetic of the product, see product.cuh
#pragma once
#include "operator.cuh"

constexpr int THREADS = 32 * WARPS;

// Blocks that should fit a multiprocessor, so that the blocks of the next step are resident while
// those of this step run: 16 warps with 128 registers per thread. f32 weights need more registers.
constexpr int RESIDENT = sizeof(T) == 4 ? 1 : 16 / WARPS;

// (unit, row) pairs per thread. Pair i of thread t is pair t + i THREADS of the block.
constexpr int PAIRS = (UNITS * ROWS + THREADS - 1) / THREADS;

// The block's units of a head, and its batch rows. Blocks are ordered by rows, then heads, then
// units.
struct Tile {
    int head, unit0, row0, units, rows;

    __device__ __forceinline__ Tile(const Sizes& sizes) {
        const unsigned unit_blocks = (sizes.head_dim + UNITS - 1) / UNITS;
        head = blockIdx.x / unit_blocks % sizes.heads;
        unit0 = blockIdx.x % unit_blocks * UNITS;
        row0 = int(blockIdx.x / unit_blocks / sizes.heads) * ROWS;
        units = ::min(UNITS, sizes.head_dim - unit0);
        rows = ::min(ROWS, sizes.batch - row0);
    }

    // Returns the index of the tile's first unit in [N, D].
    __device__ __forceinline__ Offset place(const Sizes& sizes) const {
        return Offset(head) * sizes.head_dim + unit0;
    }

    // Returns the index of a row of the tile in [B, N].
    __device__ __forceinline__ Offset head_row(const Sizes& sizes, int row) const {
        return Offset(row0 + row) * sizes.heads + head;
    }

    // Returns the index of a unit and row of the tile in [B, N, D].
    __device__ __forceinline__ Offset state(const Sizes& sizes, int row, int unit) const {
        return head_row(sizes, row) * sizes.head_dim + unit0 + unit;
    }
};
