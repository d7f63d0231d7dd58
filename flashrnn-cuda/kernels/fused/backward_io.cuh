// The IO warps of the fused backward kernel: they prefetch inputs STAGES - 1 rounds ahead, and
// store dg of the previous round unless the compute warps do.
#pragma once
#include "fused/backward_shared.cuh"
#include "fused/io_warps.cuh"

// This thread's row in the tensors of a backward pass.
template <int TENSORS> using InRows = RowCopies<const T, TENSORS, ROWS * IN_STRIDE, IN_STRIDE>;
template <int TENSORS>
using WideRows = RowCopies<const float, TENSORS, ROWS * WIDE_STRIDE, WIDE_STRIDE>;
using GateRows = InRows<INTERLEAVED ? 0 : Cell::GATES>;
using GateVectorRows = RowCopies<const GateVector, INTERLEAVED, 0, IN_STRIDE>;
using RecurrentDgRows = RowCopies<T, SPLIT_ROWS ? 0 : Cell::RECURRENT, UNITS, DG_STRIDE>;
using ExternalDgRows =
    RowCopies<T, SPLIT_ROWS ? 0 : EXTERNAL_ONLY, ROWS * IN_STRIDE, IN_STRIDE>;

// A thread of the IO warps.
struct IoThread {
    const BackwardCall& call;
    const Block& block;
    Shared& shared;
    GateRows& gates;
    GateVectorRows& gate_vectors;
    InRows<Cell::STATES>& d;
    InRows<Cell::STATES>& before;
    WideRows<WIDE_GATES>& wide_gates;
    WideRows<WIDE_STATES>& wide_before;
    RecurrentDgRows& recurrent_dg;
    ExternalDgRows& external_dg;
    const Row& row;        // the row this thread copies, if `row_exists`
    const Row& reset_row;  // the row whose resets this lane of the first IO warp reads
    const SharedAddresses& address;
    bool row_exists;
    Offset units, place;

    // Starts loading the inputs of a round.
    __device__ __forceinline__ void load(int round) {
        const Sizes& sizes = call.sizes;
        const int step = sizes.time - 1 - round, stage = round % STAGES;
        if (step == 0) load_s0(stage);
        if (step >= 0 && row_exists && (!RAGGED || row.active(step))) {
            const Offset token = row.token(sizes, step);
            gates.load(address(&shared.in[stage][GATES_IN][0][0]), token);
            gate_vectors.load(address(::gate_vectors(shared, stage)), token);
            d.load(address(&shared.in[stage][D_IN][0][0]), token);
            wide_gates.load(
                address(&shared.wide[stage][WIDE_STATES == WIDE ? 0 : WIDE_STATES][0][0]), token);
            if (step > 0) {
                const Offset previous = row.token(sizes, step - 1);
                before.load(address(&shared.in[stage][BEFORE_IN][0][0]), previous);
                wide_before.load(address(&shared.wide[stage][0][0][0]), previous);
            }
        }
        // Lanes 0 to 7 read the resets of this step, lanes 8 to 15 those of the next step.
        if (RAGGED && call.resets && io_thread() < 32 && step >= -1) {
            const int reset_step = step + io_thread() / 8;
            const bool reads =
                io_thread() < 16 && io_thread() % 8 < block.rows && reset_step >= 0;
            const unsigned mask =
                __ballot_sync(~0u, reads && reset_row.reset(sizes, call.resets, reset_step));
            if (io_thread() == 0) shared.resets[stage] = mask;
        }
        end_copy_group();
    }

    // Stores dg of a round.
    __device__ __forceinline__ void store(int round) {
        const int step = call.sizes.time - 1 - round;
        if (step < 0 || !row_exists) return;
        const Offset token = row.token(call.sizes, step);
        recurrent_dg.store(address(&shared.dg[round % 2][0][0]), token, true);
        external_dg.store(address(&shared.external_dg[round % 2][0][0][0]), token, true);
    }

    // Copies the f32 states before the first step, rounded like those that the forward pass saves.
    // Wide states are also copied unrounded.
    __device__ __forceinline__ void load_s0(int stage) {
        for (int i = io_thread(); i < Cell::STATES * ROWS * UNITS; i += IO_WARPS * 32) {
            const int s = i / (ROWS * UNITS), b = i / UNITS % ROWS, unit = i % UNITS;
            const bool exists = call.s0 && b < block.rows && unit < block.units;
            const Offset at =
                (Offset(s) * call.sizes.batch + block.row0 + b) * units + place + unit;
            const float v = exists ? call.s0[at] : 0.0f;
            shared.in[stage][BEFORE_IN + s][b][unit] = saturated<T>(v);
            if (kept_wide(Cell::WIDE, s)) shared.wide[stage][rank(Cell::WIDE, s)][b][unit] = v;
        }
    }
};

// Runs all rounds in an IO thread, in lockstep with the compute warps.
__device__ __forceinline__ void load_store(const BackwardCall& call, const Block& block,
                                           Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int row_in_block = io_thread() / LANES_PER_ROW;
    const bool row_exists = row_in_block < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? row_in_block : 0));
    const Offset units = sizes.units(), tensor = sizes.tokens() * units, place = block.place();

    // `walk` covers the steps, `walk_before` the steps before them.
    const TokenWalk walk(sizes, row, sizes.time - 1, -1);
    const TokenWalk walk_before(sizes, row, sizes.time - 2, -1);
    GateRows gates(block, walk, [&](int gate) { return gate_in(call, block, gate); });
    GateVectorRows gate_vectors(block, walk, [&](int) {
        return ::gate_vectors<const GateVector>(call.gates, sizes, place);
    });
    InRows<Cell::STATES> d(block, walk, [&](int s) { return d_in(call, block, s); });
    InRows<Cell::STATES> before(block, walk_before,
                                [&](int s) { return state_in(call, block, s); });
    WideRows<WIDE_GATES> wide_gates(block, walk, [&](int i) {
        return Tensor<const float>{call.wide_gates + i * tensor + place, units};
    });
    WideRows<WIDE_STATES> wide_before(block, walk_before, [&](int i) {
        return Tensor<const float>{call.wide_states + i * tensor + place, units};
    });
    RecurrentDgRows recurrent_dg(
        block, walk, [&](int gate) { return gate_tensor(call.d_gates, sizes, gate, place); });
    ExternalDgRows external_dg(block, walk, [&](int i) {
        return gate_tensor(call.d_gates, sizes, Cell::RECURRENT + i, place);
    });

    const Row reset_row(sizes, call.lengths,
                        block.row0 + ::min(io_thread() % 8, block.rows - 1));
    const SharedAddresses address(&shared);
    IoThread thread{call, block, shared, gates, gate_vectors, d, before, wide_gates, wide_before,
                    recurrent_dg, external_dg, row, reset_row, address, row_exists, units, place};

    for (int round = 0; round < STAGES - 1; ++round) thread.load(round);
    for (int round = 0; round <= sizes.time; ++round) {
        wait_for_copies<STAGES - 3>();  // the copies for this round and the next are complete
        arrive_for_step(shared, round);
        wait_for_step(shared, round);
        if (round > 0) thread.store(round - 1);
        thread.load(round + STAGES - 1);
    }
}
