// The IO warps of the fused forward kernel: they prefetch wx and resets STAGES - 1 steps ahead, and
// store h, states and gates of the previous step.
#pragma once
#include "fused/forward_shared.cuh"
#include "fused/io_warps.cuh"

// This thread's row in the tensors of a forward pass.
using XRows = RowCopies<const T, Cell::EXTERNAL, ROWS * X_STRIDE, X_STRIDE>;
using HRows = RowCopies<T, 2, 0, H_STRIDE>;  // h, and h among the states
using SavedRows = RowCopies<T, SAVED, ROWS * X_STRIDE, X_STRIDE>;
using WideRows = RowCopies<float, WIDE, ROWS * WIDE_STRIDE, WIDE_STRIDE>;

// A thread of the IO warps.
struct IoThread {
    const ForwardCall& call;
    const Block& block;
    Shared& shared;
    XRows& x;
    HRows& h;
    SavedRows& saved;
    WideRows& wide;
    const Row& row;        // the row this thread copies, if `row_exists`
    const Row& reset_row;  // the row whose resets this lane of the first IO warp reads
    const SharedAddresses& address;
    bool row_exists;

    // Starts loading the inputs of a step.
    __device__ __forceinline__ void load(int step) {
        const Sizes& sizes = call.sizes;
        const int stage = step % STAGES;
        if (step < sizes.time && row_exists)
            x.load(address(&shared.x[stage][0][0][0]), row.token(sizes, step));
        if (RAGGED && call.resets && io_thread() < 32 && step < sizes.time) {
            const bool set =
                io_thread() < block.rows && reset_row.reset(sizes, call.resets, step);
            const unsigned mask = __ballot_sync(~0u, set);
            if (io_thread() == 0) shared.resets[stage] = mask;
        }
        end_copy_group();
    }

    // Stores the results of a step.
    __device__ __forceinline__ void store(int step) {
        if (!row_exists) return;
        const bool active = !RAGGED || row.active(step);
        const Offset token = row.token(call.sizes, step);
        h.store(address(&shared.h[(step + 1) % 2][0][block.unit0]), token, active);
        saved.store(address(&shared.saved[step % 2][0][0][0]), token, active);
        wide.store(address(&shared.wide[step % 2][0][0][0]), token, active);
    }
};

// Runs all time steps in an IO thread, in lockstep with the compute warps.
__device__ __forceinline__ void load_store(const ForwardCall& call, const Block& block,
                                           Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int row_in_block = io_thread() / LANES_PER_ROW;
    const bool row_exists = row_in_block < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? row_in_block : 0));
    const TokenWalk walk(sizes, row, 0, 1);
    const Offset units = sizes.units(), tensor = sizes.tokens() * units, place = block.place();

    XRows x(block, walk, [&](int gate) { return x_tensor(call, block, gate); });
    HRows h(block, walk, [&](int i) {
        T* to = i == 0 ? call.h : call.states;
        return Tensor<T>{to ? to + place : nullptr, units};
    });
    SavedRows saved(block, walk, [&](int i) {  // the states after h, then the gates
        const int gate = i - (Cell::STATES - 1);
        if (gate < 0)
            return Tensor<T>{call.states ? call.states + (i + 1) * tensor + place : nullptr, units};
        return call.save_gates ? gate_tensor(call.gates, sizes, gate, place)
                               : Tensor<T>{nullptr, 0};
    });
    WideRows wide(block, walk, [&](int i) {  // the states, then the gates
        float* to = i < WIDE_STATES   ? call.wide_states
                    : call.save_gates ? call.wide_gates
                                      : nullptr;
        const int of_kind = i < WIDE_STATES ? i : i - WIDE_STATES;
        return Tensor<float>{to ? to + of_kind * tensor + place : nullptr, units};
    });

    const Row reset_row(sizes, call.lengths, block.row0 + ::min(io_thread(), block.rows - 1));
    const SharedAddresses address(&shared);
    IoThread thread{call, block, shared, x, h, saved, wide, row, reset_row, address, row_exists};

    for (int step = 0; step < STAGES - 1; ++step) thread.load(step);
    for (int step = 0; step <= sizes.time; ++step) {
        wait_for_copies<STAGES - 2>();
        // wx of this step has been copied, and the results stored last may be overwritten.
        arrive_for_step(shared, step);
        wait_for_step(shared, step);
        // In racecheck builds the split-K barrier is a block barrier, so the IO warps must join it.
        if (BLOCK_BARRIERS && SPLIT_K > 1 && step < sizes.time) __syncthreads();
        if (step > 0) thread.store(step - 1);
        if (step < sizes.time) thread.load(step + STAGES - 1);
    }
}
