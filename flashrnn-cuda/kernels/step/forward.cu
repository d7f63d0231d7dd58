// One step of the forward pass in one kernel: the product R h_{t-1}, with the cell as its epilogue.
// The time loop is a CUDA graph of such kernels.
//
// A block computes UNITS units of a head for ROWS batch rows. Before the previous step has ended,
// it loads the first chunks of R and all other inputs that do not depend on h into registers.
//
// Steps communicate through global memory. h, rounded to T, has two buffers: a step reads one and
// writes the other, because other blocks may still read the first. The f32 states are updated in
// place, because each is read only by the thread that writes it.
#include "call.cuh"
#include "outputs.cuh"
#include "step/overlap.cuh"
#include "step/product.cuh"
#include "step/tile.cuh"

// Writes the arguments to the table that the graph reads, and the state before the first step.
extern "C" __global__ void forward_begin(ForwardCall call, ForwardCall* table) {
    const Sizes& sizes = call.sizes;
    const Offset thread = Offset(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread == 0) *table = call;
    const Offset buffer = Offset(sizes.batch) * sizes.heads * sizes.depth;
    if (thread >= buffer) return;
    const int k = int(thread % sizes.depth);
    const Offset state = thread / sizes.depth * sizes.head_dim + k;  // in [B, N, D]
    const Offset stride = sizes.batch * sizes.units();
    const bool exists = k < sizes.head_dim;
    call.exchange[thread] = saturated<T>(exists && call.s0 ? call.s0[state] : 0.0f);
    call.exchange[buffer + thread] = rounded<T>(0.0f);
    if (!exists) return;
#pragma unroll
    for (int s = 0; s < Cell::STATES; ++s)
        call.state[s * stride + state] = call.s0 ? call.s0[s * stride + state] : 0.0f;
}

// Advances the table by the steps of a graph. This is the last kernel of a graph.
extern "C" __global__ void forward_advance(ForwardCall* table, int steps) {
    table->first_step += steps;
}

// Computes x_t + b of one unit and token.
__device__ __forceinline__ void load_gates(const ForwardCall& call, const Sizes& sizes,
                                           Offset token, Offset place,
                                           float (&gates)[Cell::GATES]) {
#pragma unroll
    for (int gate = 0; gate < Cell::GATES; ++gate) {
        gates[gate] = call.b[gate * sizes.units() + place];
        if (gate >= INNER) {
            const Offset x = (token * Cell::EXTERNAL + gate - INNER) * sizes.units() + place;
            gates[gate] += widen(call.wx[x]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    forward_step(const ForwardCall* __restrict__ table, int offset) {
    let_next_start();
    const ForwardCall call = *table;  // a copy, so that fields are not reloaded after the wait
    const Sizes sizes = call.sizes;
    const int step = call.first_step + offset;
    const bool live = step < sizes.time;
    const Tile tile(sizes);

    const Offset buffer = Offset(sizes.batch) * sizes.heads * sizes.depth;
    const T* before = call.exchange + (step % 2) * buffer;
    T* after = call.exchange + ((step + 1) % 2) * buffer;

    __shared__ Product<Cell::RECURRENT>::Sums sums;
    Product<Cell::RECURRENT> product(
        sizes.depth, tile.units, tile.rows,
        [&](int gate, int unit) {
            const Offset row = Offset(gate) * sizes.heads + tile.head;
            return call.r + (row * sizes.head_dim + tile.unit0 + unit) * sizes.depth;
        },
        [&](int row) { return before + tile.head_row(sizes, row) * sizes.depth; });
    product.fetch();

    // The inputs of each (unit, row) pair that do not depend on the previous step.
    float gates[PAIRS][Cell::GATES];  // x_t + b
    Offset tokens[PAIRS];
    bool exists[PAIRS], active[PAIRS], reset[PAIRS];
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
        const int index = threadIdx.x + pair * THREADS;
        const int unit = index % UNITS, row = index / UNITS;
        exists[pair] = live && unit < tile.units && row < tile.rows;
        active[pair] = reset[pair] = false;
        tokens[pair] = 0;
        if (!exists[pair]) continue;
        const Row at(sizes, call.lengths, tile.row0 + row);
        tokens[pair] = at.token(sizes, step);
        active[pair] = at.active(step);
        if (!active[pair]) continue;
        reset[pair] = at.reset(sizes, call.resets, step);
        load_gates(call, sizes, tokens[pair], tile.place(sizes) + unit, gates[pair]);
    }

    wait_for_previous();
    if (!live) return;
    const Offset state_stride = sizes.batch * sizes.units();
    float states[PAIRS][Cell::STATES];
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
        const int index = threadIdx.x + pair * THREADS;
        const Offset state = tile.state(sizes, index / UNITS, index % UNITS);
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s)
            states[pair][s] = active[pair] && !reset[pair]
                                  ? load_exchanged(call.state + s * state_stride + state)
                                  : 0.0f;
    }
    product.run(sums);
    __syncthreads();

#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
        if (!exists[pair]) continue;
        const int index = threadIdx.x + pair * THREADS;
        const int unit = index % UNITS, row = index / UNITS;
        float next[Cell::STATES] = {};
        if (active[pair]) {
#pragma unroll
            for (int gate = 0; gate < Cell::RECURRENT; ++gate)
                gates[pair][gate] += reset[pair] ? 0.0f : product.sum(sums, gate, unit, row);
            Cell::forward(states[pair], gates[pair], next);
            next[0] = real::clamp(next[0], call.forward_clip);
            saturate(next[0], after[tile.head_row(sizes, row) * sizes.depth + tile.unit0 + unit]);
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s)
                call.state[s * state_stride + tile.state(sizes, row, unit)] = next[s];
        }
        store_outputs(call, sizes, tokens[pair], tile.place(sizes) + unit, active[pair], next,
                      gates[pair]);
    }
}
