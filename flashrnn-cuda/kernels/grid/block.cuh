// The compile-time layout of the grid kernels, and the part of the problem that a block owns.
//
// A *group* of blocks owns one head and computes ROWS batch rows at a time. Each of its blocks owns
// UNITS units of the head, keeps a part of R on the chip, and receives what its product needs from
// SENDERS blocks of the group (words.cuh). All blocks of a launch run at the same time.
//
// Without clusters, the senders are the whole group, and the product has the outputs of the block's
// own units. In clusters of CLUSTER blocks, the senders are those of the same rank in their
// clusters, and the product has the outputs of all units of the block's cluster. The cluster's
// blocks then add up their products (parts.cuh).
//
// programs/sources.rs defines these macros. The first group is the Rust struct `Grid`:
//
//   BLOCKS          blocks per group
//   CLUSTER         blocks per cluster; 1 without clusters
//   UNITS           units of the head per block, even and at most 32
//   ROWS            batch rows of a group at a time: 1, 2, 4 or a multiple of 8
//   REGISTER_STEPS  steps of 16 along k whose weights a warp keeps in registers; those of the other
//                   steps are in shared memory
//   HOLD            cycles that a block waits after its barrier before it polls
//   SUM_BUFFERS     2, or 1 where shared memory is short: buffers for the sums of the warps
//
//   HEAD_DIM        units per head
//   SHARED_BYTES    the size of `Shared` as computed in Rust
//   RAGGED          the call has lengths or resets
//   CLIPS           the plan clips, or cuts the recurrent gradient
//   DELAYS          for tests, see delay.cuh
//   BLOCK_BARRIERS  for racecheck: each wait in a cluster also synchronises the block
#pragma once
#include "call.cuh"

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int CHUNK = 64 / sizeof(T);
constexpr int DEPTH = (HEAD_DIM + CHUNK - 1) / CHUNK * CHUNK;  // row length of packed R

// Columns of the tensor cores' tiles are batch rows. With fewer than 8 rows, several columns of a
// tile compute the same row.
constexpr int COLUMN_TILES = (ROWS + 7) / 8;
// Words per column tile that a lane receives at a time.
constexpr int WINDOW = 8 / COLUMN_TILES;
static_assert(ROWS % 8 == 0 || ROWS == 1 || ROWS == 2 || ROWS == 4, "rows fill or divide a tile");

constexpr int SENDERS = BLOCKS / CLUSTER;
static_assert(BLOCKS % CLUSTER == 0, "a group consists of whole clusters");
static_assert(CLUSTER == 1 || __CUDA_ARCH__ >= 900, "clusters need sm_90");

// Outside the product, a thread owns one unit of CELLS rows. The lanes of a warp cover all units of
// WARP_ROWS rows.
constexpr int WARP_ROWS = (32 / UNITS) < ROWS ? 32 / UNITS : ROWS;
constexpr int CELLS = (ROWS + WARP_ROWS * WARPS - 1) / (WARP_ROWS * WARPS);
static_assert(UNITS <= 32 && UNITS % 2 == 0, "a warp covers all units of a row, in pairs");

// The head and units of a block, and where its group is in the launch.
struct Block {
    int head, rank, unit0, units;
    int cluster, rank_in_cluster;  // the cluster's rank in the group, and the block's in it
    int group, groups;             // among the groups of this head

    __device__ __forceinline__ explicit Block(const Sizes& sizes) {
        const int all = blockIdx.x / BLOCKS;
        head = all % sizes.heads;
        group = all / sizes.heads;
        groups = gridDim.x / (BLOCKS * sizes.heads);
        rank = blockIdx.x % BLOCKS;
        cluster = rank / CLUSTER;
        rank_in_cluster = rank % CLUSTER;
        unit0 = rank * UNITS;
        units = ::max(0, ::min(UNITS, HEAD_DIM - unit0));
    }
};

// The cells of a thread: one unit of a row for every c < CELLS.
struct Place {
    int warp, lane, unit, row_in_warp;
    bool in_block;  // whether the lane has a unit of this block
    Offset at;      // index of the unit in [N, D]

    __device__ __forceinline__ explicit Place(const Block& block)
        : warp(threadIdx.x / 32), lane(threadIdx.x % 32), unit(lane % UNITS),
          row_in_warp(lane / UNITS), in_block(row_in_warp < WARP_ROWS && unit < block.units),
          at(Offset(block.head) * HEAD_DIM + block.unit0 + unit) {}

    // Returns the first row of the warp's lanes for cell c.
    __device__ __forceinline__ int warp_row(int c) const { return (c * WARPS + warp) * WARP_ROWS; }
    // Returns the row of cell `c` among those of the group.
    __device__ __forceinline__ int row(int c) const { return warp_row(c) + row_in_warp; }
    __device__ __forceinline__ bool has(int c) const { return in_block && row(c) < ROWS; }
};
