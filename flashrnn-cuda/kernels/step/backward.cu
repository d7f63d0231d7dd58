// One step of the backward pass in one kernel. The product of R transposed and dg of the next step
// is the gradient that reaches h through R. The cell's derivative, as the epilogue, computes dg of
// this step. One more step, -1, computes d_s0.
//
// Blocks, registers and buffers are as in step/forward.cu, except that k runs over the recurrent
// gates of the head's units. Each step passes dg, rounded to T, to the next through a double
// buffer, and updates the gradient of the f32 states in place. Round r processes step T - 1 - r.
#include "call.cuh"
#include "step/overlap.cuh"
#include "step/product.cuh"
#include "step/tile.cuh"

// Writes the arguments to the table that the graph reads, and zeros to `exchange`.
extern "C" __global__ void backward_begin(BackwardCall call, BackwardCall* table) {
    const Offset thread = Offset(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread == 0) *table = call;
    const Sizes& sizes = call.sizes;
    const Offset buffer = Offset(sizes.batch) * sizes.heads * Cell::RECURRENT * sizes.depth;
    if (thread >= buffer) return;
    call.exchange[thread] = call.exchange[buffer + thread] = rounded<T>(0.0f);
}

// Advances the table by the steps of a graph. This is the last kernel of a graph.
extern "C" __global__ void backward_advance(BackwardCall* table, int steps) {
    table->first_step += steps;
}

// The inputs of a (unit, row) pair that do not depend on the next step.
struct Inputs {
    Row row;
    Offset token;
    Offset state;       // index of the unit and row in [B, N, D]
    bool exists;        // whether the thread has this pair
    bool active;        // 0 <= step < length
    bool from_outside;  // the next step has no gradient for this one, because this is the row's
                        // last step or the state is reset after it
    bool clipped;       // h was clipped, so its gradient is 0
    float residuals[Cell::RESIDUALS], d[Cell::STATES];

    __device__ __forceinline__ Inputs(const BackwardCall& call, int step, bool exists,
                                      int row_index, Offset place)
        : row(call.sizes, call.lengths, exists ? row_index : 0), exists(exists) {
        const Sizes& sizes = call.sizes;
        const Offset state_stride = sizes.batch * sizes.units();
        const Offset stride = sizes.tokens() * sizes.units();
        state = Offset(row_index) * sizes.units() + place;
        token = exists && step >= 0 ? row.token(sizes, step) : 0;
        active = exists && step >= 0 && row.active(step);
        const bool last = step == row.length - 1;
        from_outside = exists && (last || row.reset(sizes, call.resets, step + 1));
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) {
            d[s] = 0.0f;
            if (exists && last && call.d_last) d[s] = call.d_last[s * state_stride + state];
            if (active && s < call.d_states_count)
                d[s] += widen(call.d_states[s * stride + token * sizes.units() + place]);
        }
        clipped = false;
        if (!active) return;
        float before[Cell::STATES] = {}, gates[Cell::GATES];
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate)
            gates[gate] = kept_wide(Cell::WIDE_GATES, gate)
                              ? call.wide_gates[rank(Cell::WIDE_GATES, gate) * stride +
                                                token * sizes.units() + place]
                              : widen(call.gates.at(sizes, token, gate, place));
        const bool reset = row.reset(sizes, call.resets, step);
#pragma unroll
        for (int s = 0; s < Cell::STATES && !reset; ++s) {
            if (step == 0) {
                if (call.s0) before[s] = call.s0[s * state_stride + state];
                continue;
            }
            const Offset previous = row.token(sizes, step - 1) * sizes.units() + place;
            before[s] = kept_wide(Cell::WIDE, s)
                            ? call.wide_states[rank(Cell::WIDE, s) * stride + previous]
                            : widen(call.states[s * stride + previous]);
        }
        Cell::linearize(before, gates, residuals);
        if (call.forward_clip != real::inf()) {
            float next[Cell::STATES];
            Cell::forward(before, gates, next);
            clipped = real::abs(next[0]) > call.forward_clip;
        }
    }
};

// Writes the gradient `d` of the state before the first step.
__device__ __forceinline__ void store_d_s0(const BackwardCall& call, const Sizes& sizes,
                                           const Inputs& in, Offset state_stride,
                                           const float (&d)[Cell::STATES]) {
#pragma unroll
    for (int s = 0; s < Cell::STATES; ++s) {
        const bool none = (Cell::CONSTANT >> s & 1) || in.row.reset(sizes, call.resets, 0);
        call.d_s0[s * state_stride + in.state] = none ? 0.0f : d[s];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    backward_step(const BackwardCall* __restrict__ table, int offset) {
    let_next_start();
    const BackwardCall call = *table;  // a copy, so that fields are not reloaded after the wait
    const Sizes sizes = call.sizes;
    const int round = call.first_step + offset;
    const int step = sizes.time - 1 - round;
    const bool live = step >= 0 || (step == -1 && call.d_s0);
    const Tile tile(sizes);

    const int depth = Cell::RECURRENT * sizes.depth;
    const Offset buffer = Offset(sizes.batch) * sizes.heads * depth;
    const T* after = call.exchange + (round % 2) * buffer;
    T* here = call.exchange + ((round + 1) % 2) * buffer;

    __shared__ Product<1>::Sums sums;
    Product<1> product(
        depth, tile.units, tile.rows,
        [&](int, int unit) { return call.r + (tile.place(sizes) + unit) * depth; },
        [&](int row) { return after + tile.head_row(sizes, row) * depth; });
    product.fetch();

    const auto unit_of = [&](int pair) { return int(threadIdx.x + pair * THREADS) % UNITS; };
    const auto row_of = [&](int pair) { return int(threadIdx.x + pair * THREADS) / UNITS; };
    const auto inputs_of = [&](int pair) {
        const bool exists = live && unit_of(pair) < tile.units && row_of(pair) < tile.rows;
        return Inputs(call, step, exists, tile.row0 + row_of(pair),
                      tile.place(sizes) + unit_of(pair));
    };
    const auto finish = [&](int pair, const Inputs& in) {
        if (!in.exists) return;
        const Offset place = tile.place(sizes) + unit_of(pair);
        const Offset state_stride = sizes.batch * sizes.units();
        float d[Cell::STATES];
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s)
            d[s] = in.d[s] + (in.from_outside
                                  ? 0.0f
                                  : load_exchanged(call.d_state + s * state_stride + in.state));
        if (!in.from_outside && !call.cut_recurrent_grad)
            d[0] += real::clamp(product.sum(sums, 0, unit_of(pair), row_of(pair)),
                                call.recurrent_grad_clip);
        if (step < 0) return store_d_s0(call, sizes, in, state_stride, d);
        float d_before[Cell::STATES] = {}, d_gates[Cell::GATES] = {};
        if (in.active) {
            if (in.clipped) d[0] = 0.0f;
            Cell::backward(in.residuals, d, d_before, d_gates);
#pragma unroll
            for (int gate = 0; gate < Cell::RECURRENT; ++gate) {
                const Offset row = tile.head_row(sizes, row_of(pair)) * Cell::RECURRENT + gate;
                narrow(d_gates[gate], here[row * sizes.depth + tile.unit0 + unit_of(pair)]);
            }
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s)
                call.d_state[s * state_stride + in.state] = d_before[s];
        }
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate)
            narrow(d_gates[gate], call.d_gates.at(sizes, in.token, gate, place));
    };

    if constexpr (PAIRS == 1) {
        const Inputs in = inputs_of(0);
        wait_for_previous();
        if (!live) return;
        product.run(sums);
        __syncthreads();
        finish(0, in);
    } else {
        // The inputs of several pairs would not fit the registers.
        wait_for_previous();
        if (!live) return;
        product.run(sums);
        __syncthreads();
        for (int pair = 0; pair < PAIRS; ++pair) finish(pair, inputs_of(pair));
    }
}
