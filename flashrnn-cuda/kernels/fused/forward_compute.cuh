// The compute warps of the fused forward kernel: they compute the product R h and run the cell.
#pragma once
#include "fused/alignment.cuh"
#include "fused/forward_shared.cuh"

// A thread of the compute warps, which owns one unit of ROWS_PER_LANE batch rows. Its part of R and
// the f32 states stay in registers for all steps.
//
// The arrays are locals of `compute`, not members. The compiler keeps a struct in registers only if
// all indices into it are constants, so with array members the scalars would also be in memory
// until every loop is unrolled.
struct ComputeThread {
    const ForwardCall& call;
    const Sizes& sizes;
    const Block& block;
    Shared& shared;
    const ForwardProduct<K_STEPS>& product;
    const float (&bias)[Cell::GATES];
    float (&states)[ROWS_PER_LANE][Cell::STATES];
    const int (&lengths)[ROWS_PER_LANE];
    const TokenBit (&token_bits)[2];
    const RowShifts& x_shifts;

    int lane, group, split;   // index of the warp's 8 units, and of its part of k
    int lane_unit, lane_row;  // this thread's unit in the group, and its first row in the block
    int group_unit;           // the group's first unit in the block
    bool unit_exists;         // whether the unit is in the head
    Offset place;             // index of the unit in [N, D]
    Offset state_stride;      // elements from each state to the next in [S, B, N, D]
    unsigned block_rank;      // index in the cluster

    __device__ __forceinline__ int batch_row(int j) const { return block.row0 + lane_row + j; }
    __device__ __forceinline__ int length(int j) const { return RAGGED ? lengths[j] : sizes.time; }

    __device__ __forceinline__ void step(unsigned step) {
        wait_for_step(shared, step);
        const unsigned now = step % 2, next = 1 - now, stage = step % STAGES;
        if (BLOCKS > 1 && threadIdx.x == 0)  // from the other blocks
            shared.full[next].expect((BLOCKS - 1) * UNITS * ROWS * sizeof(T));

        float sums[ROWS_PER_LANE][at_least_one(Cell::RECURRENT)];
        product.run(shared.h[now][0], H_STRIDE, sums);
        if constexpr (SPLIT_K > 1) {
            if (!reduce_splits(sums)) {
                arrive_for_step(shared, step + 1);
                return;
            }
        }
        float gates[ROWS_PER_LANE][Cell::GATES];
        load_gates(step, stage, gates);
        run_cell(step, stage, sums, gates);

        float h[1][ROWS_PER_LANE];
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j) h[0][j] = states[j][0];
        store_tensors<1>(h, &shared.h[next][0][block.unit0 + group_unit], 0, H_STRIDE);
        if constexpr (BLOCKS > 1) all_gather_h(next);
        if constexpr (SAVES) save(step, gates);
        arrive_for_step(shared, step + 1);
    }

    // Adds up the partial sums of the splits. Returns whether this warp holds the totals.
    __device__ __forceinline__ bool reduce_splits(
        float (&sums)[ROWS_PER_LANE][at_least_one(Cell::RECURRENT)]) {
        constexpr int N = ROWS_PER_LANE * Cell::RECURRENT;
        const int column = group * 32 + lane;
        if (split > 0) {
#pragma unroll
            for (int i = 0; i < N; ++i)
                shared.partials[split - 1][i][column] =
                    sums[i / Cell::RECURRENT][i % Cell::RECURRENT];
        }
        delay();
        if (BLOCK_BARRIERS)
            __syncthreads();
        else
            named_barrier(COMPUTE_THREADS);
        if (split > 0) return false;
#pragma unroll
        for (int other = 0; other < SPLIT_K - 1; ++other) {
#pragma unroll
            for (int i = 0; i < N; ++i)
                sums[i / Cell::RECURRENT][i % Cell::RECURRENT] +=
                    shared.partials[other][i][column];
        }
        return true;
    }

    // Computes x_t + b while the tensor cores compute the product.
    __device__ __forceinline__ void load_gates(unsigned step, unsigned stage,
                                               float (&gates)[ROWS_PER_LANE][Cell::GATES]) {
        float x[at_least_one(Cell::EXTERNAL)][ROWS_PER_LANE];
        if constexpr (SPLIT_ROWS) {
#pragma unroll
            for (int j = 0; j < ROWS_PER_LANE; ++j) {
                const unsigned shifts =
                    x_shifts.at(token_bits[j].at(sizes, batch_row(j), length(j), step));
#pragma unroll
                for (int gate = 0; gate < Cell::EXTERNAL; ++gate)
                    x[gate][j] = widen(shared.x[stage][gate][lane_row + j]
                                               [group_unit + lane_unit + (shifts >> gate & 1)]);
            }
        } else {
            load_tensors<Cell::EXTERNAL>(x, &shared.x[stage][0][0][group_unit], ROWS * X_STRIDE,
                                         X_STRIDE);
        }
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j) {
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate)
                gates[j][gate] = gate < INNER
                                     ? bias[gate]
                                     : bias[gate] + x[gate < INNER ? 0 : gate - INNER][j];
        }
    }

    // Completes the gates and updates the states.
    __device__ __forceinline__ void run_cell(
        unsigned step, unsigned stage,
        const float (&sums)[ROWS_PER_LANE][at_least_one(Cell::RECURRENT)],
        float (&gates)[ROWS_PER_LANE][Cell::GATES]) {
        const unsigned resets = RAGGED && call.resets ? shared.resets[stage] : 0;
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j) {
            // Units beyond the head keep their state at 0: their gates are arbitrary, and must not
            // reach a product.
            const bool active =
                RAGGED ? int(step) < lengths[j] : HEAD_DIM % UNITS == 0 || unit_exists;
            const bool reset = resets >> (lane_row + j) & 1;
#pragma unroll
            for (int gate = 0; gate < Cell::RECURRENT; ++gate)
                gates[j][gate] += reset ? 0.0f : sums[j][gate];

            float before[Cell::STATES], next[Cell::STATES];
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s) before[s] = reset ? 0.0f : states[j][s];
            Cell::forward(before, gates[j], next);
            if (CLIPS) next[0] = real::clamp(next[0], call.forward_clip);
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s) states[j][s] = active ? next[s] : states[j][s];
        }
    }

    // Sends h of the warp's 8 units, in buffer `next`, to the other blocks of the cluster in pieces
    // of 16 bytes. Lane l sends piece l % PIECES to every (32 / PIECES)-th block from l / PIECES
    // on.
    __device__ __forceinline__ void all_gather_h(unsigned next) {
        __syncwarp();
        constexpr int PIECE = 16 / sizeof(T), ROW_PIECES = 8 / PIECE, PIECES = ROWS * ROW_PIECES;
        const int row = lane % PIECES / ROW_PIECES, column = lane % ROW_PIECES * PIECE;
        const T* piece = &shared.h[next][row][block.unit0 + group_unit + column];
        const uint4 v = *reinterpret_cast<const uint4*>(piece);
        const unsigned to = shared_address(piece);
        const unsigned barrier = shared_address(&shared.full[next]);
#pragma unroll
        for (int first = 0; first < BLOCKS; first += 32 / PIECES) {
            const unsigned other = first + lane / PIECES;
            if (other < BLOCKS && other != block_rank)
                send(address_in(to, other), v, address_in(barrier, other));
        }
    }

    // Passes states and gates to the IO warps. Interleaved gates are stored directly.
    __device__ __forceinline__ void save(unsigned step,
                                         const float (&gates)[ROWS_PER_LANE][Cell::GATES]) {
        float v[at_least_one(SAVED)][ROWS_PER_LANE];
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j) {
#pragma unroll
            for (int i = 0; i < SAVED; ++i)
                v[i][j] = i < Cell::STATES - 1 ? states[j][::min(i + 1, Cell::STATES - 1)]
                                               : gates[j][::max(0, i - (Cell::STATES - 1))];
        }
        if constexpr (INTERLEAVED) store_interleaved(step, gates);
        store_tensors<SAVED>(v, &shared.saved[step % 2][0][0][group_unit], ROWS * X_STRIDE,
                             X_STRIDE);
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j) {
            const auto put = [&](int tensor, float v) {
                shared.wide[step % 2][tensor][lane_row + j][group_unit + lane_unit] = v;
            };
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s)
                if (kept_wide(Cell::WIDE, s)) put(rank(Cell::WIDE, s), states[j][s]);
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate)
                if (kept_wide(Cell::WIDE_GATES, gate))
                    put(WIDE_STATES + rank(Cell::WIDE_GATES, gate), gates[j][gate]);
        }
    }

    // Stores all gates of this thread's unit, as one vector per row.
    __device__ __forceinline__ void store_interleaved(
        unsigned step, const float (&gates)[ROWS_PER_LANE][Cell::GATES]) {
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j) {
            if (!call.save_gates || !unit_exists || batch_row(j) >= sizes.batch) continue;
            GateVector vector;
#pragma unroll
            for (int gate = 0; gate < VECTOR_GATES; ++gate)
                vector.gate[gate] =
                    saturated<T>(!RAGGED || int(step) < lengths[j] ? gates[j][gate] : 0.0f);
            const Offset token = token_of(sizes, batch_row(j), length(j), step);
            T* const to = call.gates.external + (token * sizes.units() + place) * Cell::GATES;
            if constexpr (COPY_BYTES == 1) {
#pragma unroll
                for (int gate = 0; gate < VECTOR_GATES; ++gate) to[gate] = vector.gate[gate];
            } else {
                *reinterpret_cast<GateVector*>(to) = vector;
            }
        }
    }

    // Writes the final states of each row.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int j = 0; j < ROWS_PER_LANE; ++j) {
            const int row = lane_row + j;
            if (row >= block.rows || !unit_exists) continue;
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s)
                call.state[s * state_stride + (block.row0 + row) * sizes.units() + place] =
                    states[j][s];
        }
    }
};

// Runs all time steps in a compute thread.
__device__ __forceinline__ void compute(const ForwardCall& call, const Block& block,
                                        Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int lane_unit = lane / 4, lane_row = lane % 4 * ROWS_PER_LANE;
    const int group = warp % GROUPS, split = warp / GROUPS, group_unit = group * 8;
    const int unit = block.unit0 + group_unit + lane_unit;
    const bool unit_exists = unit < HEAD_DIM;
    const Offset place = Offset(block.head) * HEAD_DIM + unit;

    ForwardProduct<K_STEPS> product;
    product.load(unit_exists ? call.r + place * DEPTH : nullptr, sizes.units() * DEPTH,
                 split * K_OF_SPLIT);
    float bias[Cell::GATES];
#pragma unroll
    for (int gate = 0; gate < Cell::GATES; ++gate)
        bias[gate] = unit_exists ? call.b[gate * sizes.units() + place] : 0.0f;

    const Offset state_stride = sizes.batch * sizes.units();
    float states[ROWS_PER_LANE][Cell::STATES];
    int lengths[ROWS_PER_LANE];
#pragma unroll
    for (int j = 0; j < ROWS_PER_LANE; ++j) {
        const int row = lane_row + j;
        const bool exists = row < block.rows && unit_exists;
        lengths[j] = exists ? Row(sizes, call.lengths, block.row0 + row).length : 0;
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s)
            states[j][s] = exists && call.s0 ? call.s0[s * state_stride +
                                                       (block.row0 + row) * sizes.units() + place]
                                             : 0.0f;
    }
    const unsigned block_rank = BLOCKS == 1 ? 0 : block_in_cluster();
    const RowShifts x_shifts(Cell::EXTERNAL,
                             [&](int gate) { return x_tensor(call, block, gate); });
    const TokenBit token_bits[2] = {{sizes, block.row0 + lane_row},
                                    {sizes, block.row0 + lane_row + ROWS_PER_LANE - 1}};

    ComputeThread thread{call, sizes, block, shared, product, bias, states, lengths, token_bits,
                         x_shifts, lane, group, split, lane_unit, lane_row, group_unit,
                         unit_exists, place, state_stride, block_rank};
    arrive_for_step(shared, 0);
    for (unsigned step = 0; step < unsigned(sizes.time); ++step) thread.step(step);
    wait_for_step(shared, sizes.time);
    if (call.state && split == 0) thread.finish();
}
