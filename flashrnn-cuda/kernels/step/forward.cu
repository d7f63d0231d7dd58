// One step of the forward pass, one kernel: the product R h_{t-1}, and the cell as its epilogue.
// The time loop is a CUDA graph of these kernels (src/time_loop.rs).
//
// Grid: a block for UNITS units of a head and ROWS rows of the batch; units innermost, then heads,
// then rows. Shared memory: the warps' sums, WARPS x 16 TILES x (ROWS + 8) floats. Registers: the
// first chunks of R, and each thread's PAIRS (unit, row) pairs' inputs, all fetched before the
// previous step has ended.
//
// What goes from step to step lies in global memory: h rounded to T in two buffers in turn (a step
// reads one and writes the other, for other blocks read what this one would overwrite), the f32
// states in place (only their own thread reads them).
#include "call.cuh"
#include "step/overlap.cuh"
#include "step/product.cuh"

constexpr int PAIRS = (UNITS * ROWS + THREADS - 1) / THREADS;

// Writes the arguments where the graph reads them, and the state before the first step.
extern "C" __global__ void forward_begin(ForwardCall call, ForwardCall* table) {
    const Sizes& sizes = call.sizes;
    const Offset thread = Offset(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread == 0) *table = call;
    const Offset half = Offset(sizes.batch) * sizes.heads * sizes.depth;
    if (thread >= half) return;
    const int k = int(thread % sizes.depth);
    const Offset state = thread / sizes.depth * sizes.head_dim + k;  // in [B, N, D]
    const Offset stride = sizes.batch * sizes.units();
    const bool exists = k < sizes.head_dim;
    call.exchange[thread] = saturated<T>(exists && call.s0 ? call.s0[state] : 0.0f);
    call.exchange[half + thread] = rounded<T>(0.0f);
    if (!exists) return;
#pragma unroll
    for (int s = 0; s < Cell::STATES; ++s) call.carried[s * stride + state] = call.s0 ? call.s0[s * stride + state] : 0.0f;
}

// The graph's last kernel: the next launch goes on where this one ends.
extern "C" __global__ void forward_advance(ForwardCall* table, int steps) { table->first_step += steps; }

extern "C" __global__ void __launch_bounds__(THREADS, sizeof(T) == 4 ? 1 : RESIDENT) forward_step(const ForwardCall* __restrict__ table, int offset) {
    let_next_start();
    const ForwardCall call = *table;  // a copy: what is read later would come from memory again after the wait
    const Sizes sizes = call.sizes;
    const int step = call.first_step + offset;
    const bool live = step < sizes.time;

    const unsigned unit_blocks = (sizes.head_dim + UNITS - 1) / UNITS;
    const int head = blockIdx.x / unit_blocks % sizes.heads;
    const int unit0 = blockIdx.x % unit_blocks * UNITS;
    const int row0 = int(blockIdx.x / unit_blocks / sizes.heads) * ROWS;
    const int units = ::min(UNITS, sizes.head_dim - unit0), rows = ::min(ROWS, sizes.batch - row0);

    const Offset half = Offset(sizes.batch) * sizes.heads * sizes.depth;
    const T* before = call.exchange + (step % 2) * half;
    T* after = call.exchange + ((step + 1) % 2) * half;

    __shared__ Product<Cell::RECURRENT>::Sums sums;
    Product<Cell::RECURRENT> product(
        sizes.depth, units, rows,
        [&](int gate, int unit) {
            return call.r + ((Offset(gate) * sizes.heads + head) * sizes.head_dim + unit0 + unit) * sizes.depth;
        },
        [&](int row) { return before + (Offset(row0 + row) * sizes.heads + head) * sizes.depth; });
    product.fetch();

    // Each thread's pairs: g = x_t + b, and whether the row goes on.
    float gates[PAIRS][Cell::GATES];
    Offset tokens[PAIRS];
    bool exists[PAIRS], active[PAIRS], reset[PAIRS];
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
        const int index = threadIdx.x + pair * THREADS;
        const int unit = index % UNITS, row = index / UNITS;
        exists[pair] = live && unit < units && row < rows;
        active[pair] = reset[pair] = false;
        tokens[pair] = 0;
        if (!exists[pair]) continue;
        const Row at(sizes, call.lengths, row0 + row);
        tokens[pair] = at.token(sizes, step);
        active[pair] = at.active(step);
        if (!active[pair]) continue;
        reset[pair] = at.reset(sizes, call.resets, step);
        const Offset place = Offset(head) * sizes.head_dim + unit0 + unit;
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate) {
            gates[pair][gate] = call.b[gate * sizes.units() + place];
            if (gate >= INNER) {
                const Offset x = (tokens[pair] * Cell::EXTERNAL + gate - INNER) * sizes.units() + place;
                gates[pair][gate] += widen(call.wx[x]);
            }
        }
    }

    wait_for_previous();
    if (!live) return;
    const Offset state_stride = sizes.batch * sizes.units();
    float states[PAIRS][Cell::STATES];
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
        const int index = threadIdx.x + pair * THREADS;
        const Offset place =
            (Offset(row0 + index / UNITS) * sizes.heads + head) * sizes.head_dim + unit0 + index % UNITS;
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s)
            states[pair][s] =
                active[pair] && !reset[pair] ? load_exchanged(call.carried + s * state_stride + place) : 0.0f;
    }
    product.run(sums);
    __syncthreads();

#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
        if (!exists[pair]) continue;
        const int index = threadIdx.x + pair * THREADS;
        const int unit = index % UNITS, row = index / UNITS;
        const Offset place = Offset(head) * sizes.head_dim + unit0 + unit;
        const Offset written = tokens[pair] * sizes.units() + place;
        const Offset state_written = sizes.tokens() * sizes.units();
        float next[Cell::STATES] = {};
        if (active[pair]) {
#pragma unroll
            for (int gate = 0; gate < Cell::RECURRENT; ++gate)
                gates[pair][gate] += reset[pair] ? 0.0f : product.sum(sums, gate, unit, row);
            Cell::forward(states[pair], gates[pair], next);
            next[0] = real::clamp(next[0], call.forward_clip);
            const Offset head_row = Offset(row0 + row) * sizes.heads + head;
            saturate(next[0], after[head_row * sizes.depth + unit0 + unit]);
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s)
                call.carried[s * state_stride + head_row * sizes.head_dim + unit0 + unit] = next[s];
        }
        // Beyond a row's length the outputs are zeros.
        if (call.h) saturate(next[0], call.h[written]);
        if (call.states) {
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s) saturate(next[s], call.states[s * state_written + written]);
        }
        if (call.wide_states) {
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s)
                if (kept_wide(Cell::WIDE, s)) call.wide_states[rank(Cell::WIDE, s) * state_written + written] = next[s];
        }
        if (call.save_gates) {
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate) {
                const float value = active[pair] ? gates[pair][gate] : 0.0f;
                saturate(value, call.gates.at(sizes, tokens[pair], gate, place));
                if (kept_wide(Cell::WIDE_GATES, gate))
                    call.wide_gates[rank(Cell::WIDE_GATES, gate) * state_written + written] = value;
            }
        }
    }
}
