// The compute warps of the fused backward kernel: they sum dh, run the cell's derivative, and
// compute the product R^T dg.
#pragma once
#include "fused/alignment.cuh"
#include "fused/backward_shared.cuh"

// A thread of the compute warps. In the product it holds a part of R transposed. In the rest of a
// round it owns UNITS_PER_THREAD units of one batch row and the gradients of their states.
//
// The arrays are locals of `compute`, for the reason given in forward_compute.cuh.
struct ComputeThread {
    const BackwardCall& call;
    const Sizes& sizes;
    const Block& block;
    Shared& shared;
    const BackwardProduct<TILES_PER_WARP, K_STEPS>& product;
    const Row& row;

    // The gradient of the states after the step, without the part that reaches h through R.
    float (&d_state)[UNITS_PER_THREAD][Cell::STATES];
    // What `linearize` computes for a step before its dh is known.
    float (&residuals)[UNITS_PER_THREAD][Cell::RESIDUALS];
    float (&d_given)[UNITS_PER_THREAD][Cell::STATES];
    bool (&clipped)[UNITS_PER_THREAD];  // h was clipped, so its gradient is 0
    const RowShifts &gate_shifts, &d_shifts, &state_shifts;
    const TokenBit& token_bit;

    // Addresses for this lane's partial sums of each tile, for `half` 0 and buffer 0.
    const unsigned (&partial_to)[TILES_PER_WARP];
    const unsigned (&barrier_to)[TILES_PER_WARP];

    int group;            // of the warp, which owns the tiles group, group + GROUPS, ...
    int b;                // this thread's row in the block
    bool row_exists;
    int length;           // of the row; -1 if it does not exist
    Offset state;         // the row and the block's first unit in [B, N, D]
    Offset state_stride;  // elements from each state to the next in [S, B, N, D]

    static constexpr unsigned BUFFER_BYTES = sizeof(Shared::partials[0]);
    static constexpr unsigned HALF_BYTES = 8 * sizeof(Shared::partials[0][0][0]);

    // This thread's units in the block are `unit_of(j)` for every j with `has(j)`.
    static __device__ __forceinline__ int unit_of(int j) {
        return int(threadIdx.x + j * COMPUTE_THREADS) / ROWS;
    }
    static __device__ __forceinline__ bool has(int j) {
        return ROWS * UNITS % COMPUTE_THREADS == 0 || unit_of(j) < UNITS;
    }
    __device__ __forceinline__ bool active(int round) const {
        return !RAGGED || sizes.time - 1 - round < length;
    }
    // Returns whether the state is reset between the step of this round and the next time step.
    __device__ __forceinline__ bool reset_after(int round) const {
        return RAGGED && call.resets && shared.resets[round % STAGES] >> (8 + b) & 1;
    }

    __device__ __forceinline__ void step(int round) {
        const unsigned now = unsigned(round) % 2;
        wait_for_step(shared, round);
        if (BLOCKS > 1 && threadIdx.x == 0)  // from all blocks, including this one
            shared.full[1 - now].expect(BUFFER_BYTES);
        if (round == 0) linearize(round);
        differentiate(round);
        delay();
        named_barrier(COMPUTE_THREADS);  // dg of the whole block has been written

        float2 partials[TILES_PER_WARP][ROWS / 4];
        product.run(shared.dg[now][0], DG_STRIDE, partials);
        // Overlaps with the tensor cores or, in a cluster, with the exchange of the partial sums.
        // The result of the last round is not used.
        if (BLOCKS == 1) linearize(round + 1);
#pragma unroll
        for (int i = 0; i < TILES_PER_WARP; ++i) {
#pragma unroll
            for (int half = 0; half < ROWS / 4; ++half)
                reduce_scatter(i, half, round + 1, partials[i][half]);
        }
        arrive_for_step(shared, round + 1);
        if constexpr (SPLIT_ROWS) store_dg(round);
        if (BLOCKS > 1) linearize(round + 1);
    }

    // Computes the part of the cell's derivative that does not depend on dh.
    __device__ __forceinline__ void linearize(int round) {
        if (!active(round)) return;
        const int stage = unsigned(round) % STAGES;
        const bool reset = RAGGED && call.resets && shared.resets[stage] >> b & 1;
        const int step = sizes.time - 1 - round;
        const auto bit = [&](int step) {
            return token_bit.at(sizes, row.index, row.length, step);
        };
        const unsigned gate_shift = gate_shifts.at(bit(step)), d_shift = d_shifts.at(bit(step));
        // The state before the first step is never shifted, because `load_s0` copies elements.
        const unsigned before_shift = step > 0 ? state_shifts.at(bit(step - 1)) : 0;
#pragma unroll
        for (int j = 0; j < UNITS_PER_THREAD; ++j) {
            if (!has(j)) continue;
            const int unit = unit_of(j);
            float before[Cell::STATES], gates[Cell::GATES];
            GateVector vector;
            if constexpr (INTERLEAVED) vector = gate_vectors(shared, stage)[b * IN_STRIDE + unit];
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate)
                gates[gate] =
                    kept_wide(Cell::WIDE_GATES, gate)
                        ? shared.wide[stage][WIDE_STATES + rank(Cell::WIDE_GATES, gate)][b][unit]
                    : INTERLEAVED ? widen(vector.gate[gate % VECTOR_GATES])
                                  : widen(shared.in[stage][GATES_IN + gate][b]
                                                   [unit + (gate_shift >> gate & 1)]);
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s) {
                before[s] = kept_wide(Cell::WIDE, s)
                                ? shared.wide[stage][rank(Cell::WIDE, s)][b][unit]
                                : widen(shared.in[stage][BEFORE_IN + s][b]
                                                 [unit + (before_shift >> s & 1)]);
                if (reset) before[s] = 0.0f;
                // 0 if there is no gradient
                d_given[j][s] = widen(shared.in[stage][D_IN + s][b][unit + (d_shift >> s & 1)]);
            }
            Cell::linearize(before, gates, residuals[j]);
            if (CLIPS) {
                float next[Cell::STATES];
                Cell::forward(before, gates, next);
                clipped[j] = real::abs(next[0]) > call.forward_clip;
            }
        }
    }

    // Returns the part of the gradient of h of unit j that comes through R.
    __device__ __forceinline__ float sum_partials(int round, int j) const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < PARTIALS; ++i)
            sum += shared.partials[unsigned(round) % 2][i][unit_of(j)][b];
        if (CLIPS)
            sum = call.cut_recurrent_grad ? 0.0f : real::clamp(sum, call.recurrent_grad_clip);
        return sum;
    }

    // Computes dg of this thread's units, and the gradient of the states before the step.
    __device__ __forceinline__ void differentiate(int round) {
        const bool reset = reset_after(round);
        const bool last = RAGGED && sizes.time - 1 - round == length - 1;
#pragma unroll
        for (int j = 0; j < UNITS_PER_THREAD; ++j) {
            if (!has(j)) continue;
            const int unit = unit_of(j);
            const float dh = sum_partials(round, j);
            float d_gates[Cell::GATES] = {};
            if (active(round)) {
                float d[Cell::STATES];
#pragma unroll
                for (int s = 0; s < Cell::STATES; ++s)
                    d[s] = d_given[j][s] + (reset ? 0.0f : d_state[j][s]);
                if (!(last || reset)) d[0] += dh;
                if (CLIPS && clipped[j]) d[0] = 0.0f;
                Cell::backward(residuals[j], d, d_state[j], d_gates);
            }
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate)
                dg_at(shared, round, gate, b, unit) = rounded<T>(
                    HEAD_DIM % UNITS == 0 || unit < block.units ? d_gates[gate] : 0.0f);
        }
    }

    // Sends the partial sums of one unit of tile i, for two rows, to the block that owns the unit.
    // Within the tile it is unit r; if `half` is 1, or the lane has no rows of its own, it is unit
    // r + 8.
    __device__ __forceinline__ void reduce_scatter(int i, int half, unsigned round,
                                                   float2 v) const {
        if (GROUPS * TILES_PER_WARP > TILES && group + i * GROUPS >= TILES) return;
        const unsigned to = partial_to[i] + round % 2 * BUFFER_BYTES + half * HALF_BYTES;
        if (BLOCKS == 1)
            store_shared(to, v);
        else
            send(to, v, barrier_to[i] + round % 2 * sizeof(Barrier));
    }

    // Stores this thread's dg if rows may start in the middle of a word. This takes fewer
    // instructions than assembling words from shared memory in the IO warps.
    __device__ __forceinline__ void store_dg(int round) const {
        const Offset token = row.token(sizes, sizes.time - 1 - round);
#pragma unroll
        for (int j = 0; j < UNITS_PER_THREAD; ++j) {
            if (!has(j) || !row_exists || unit_of(j) >= block.units) continue;
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate)
                call.d_gates.at(sizes, token, gate, block.place() + unit_of(j)) =
                    dg_at(shared, round, gate, b, unit_of(j));
        }
    }

    // Writes the gradient of the states before the first step.
    __device__ __forceinline__ void finish() {
        const bool reset = reset_after(sizes.time);
#pragma unroll
        for (int j = 0; j < UNITS_PER_THREAD; ++j) {
            if (!call.d_s0 || !row_exists || unit_of(j) >= block.units) continue;
            const float dh = sum_partials(sizes.time, j);
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s) {
                float d = d_state[j][s];
                if (s == 0 && !(RAGGED && length == 0)) d += dh;
                call.d_s0[s * state_stride + state + unit_of(j)] =
                    (Cell::CONSTANT >> s & 1) || reset ? 0.0f : d;
            }
        }
    }
};

// Runs all rounds in a compute thread.
__device__ __forceinline__ void compute(const BackwardCall& call, const Block& block,
                                        Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
    const int split = warp % SPLIT_K, group = warp / SPLIT_K;
    const unsigned rank = BLOCKS == 1 ? 0 : block_in_cluster();

    BackwardProduct<TILES_PER_WARP, K_STEPS> product;
    const auto weight = [&](int i, int unit_of_tile, int k) -> const T* {
        const int unit = (group + i * GROUPS) * 16 + unit_of_tile;
        const int gate = k / UNITS, from = block.unit0 + k % UNITS;
        const bool exists = unit < HEAD_DIM && gate < Cell::RECURRENT && from < DEPTH;
        return exists ? call.r + ((Offset(block.head) * HEAD_DIM + unit) * Cell::RECURRENT + gate) *
                                     DEPTH + from
                      : nullptr;
    };
    product.load(weight, split * K_STEPS * 32);

    const int b = threadIdx.x % ROWS;
    const bool row_exists = b < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? b : 0));
    const int length = row_exists ? row.length : -1;
    const Offset state_stride = sizes.batch * sizes.units();
    const Offset state = Offset(block.row0 + b) * sizes.units() + block.place();

    // The gradient of the states after a row's last step is d_last.
    float d_state[UNITS_PER_THREAD][Cell::STATES] = {};
#pragma unroll
    for (int j = 0; j < UNITS_PER_THREAD; ++j) {
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s)
            if (call.d_last && row_exists && ComputeThread::unit_of(j) < block.units)
                d_state[j][s] =
                    call.d_last[s * state_stride + state + ComputeThread::unit_of(j)];
    }
    float residuals[UNITS_PER_THREAD][Cell::RESIDUALS], d_given[UNITS_PER_THREAD][Cell::STATES];
    bool clipped[UNITS_PER_THREAD];
    const RowShifts gate_shifts(INTERLEAVED ? 0 : Cell::GATES,
                                [&](int gate) { return gate_in(call, block, gate); });
    const RowShifts d_shifts(Cell::STATES, [&](int s) { return d_in(call, block, s); });
    const RowShifts state_shifts(Cell::STATES, [&](int s) { return state_in(call, block, s); });
    const TokenBit token_bit(sizes, row.index);

    const int lane_half = ROWS == 4 ? q / 2 : 0, lane_row = q * 2 % ROWS;
    unsigned partial_to[TILES_PER_WARP], barrier_to[TILES_PER_WARP];
#pragma unroll
    for (int i = 0; i < TILES_PER_WARP; ++i) {
        const int tile = ::min(group + i * GROUPS, TILES - 1);
        const int unit = tile % BLOCK_TILES * 16 + lane_half * 8 + r;
        partial_to[i] = shared_address(&shared.partials[0][rank * SPLIT_K + split][unit][lane_row]);
        barrier_to[i] = shared_address(&shared.full[0]);
        if constexpr (BLOCKS > 1) {
            partial_to[i] = address_in(partial_to[i], tile / BLOCK_TILES);
            barrier_to[i] = address_in(barrier_to[i], tile / BLOCK_TILES);
        }
    }

    ComputeThread thread{call, sizes, block, shared, product, row, d_state, residuals, d_given,
                         clipped, gate_shifts, d_shifts, state_shifts, token_bit, partial_to,
                         barrier_to, group, b, row_exists, length, state, state_stride};
    arrive_for_step(shared, 0);
    for (int round = 0; round < sizes.time; ++round) thread.step(round);
    wait_for_step(shared, sizes.time);
    thread.finish();
}
