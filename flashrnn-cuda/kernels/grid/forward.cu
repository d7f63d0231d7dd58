// The forward pass of all time steps in one kernel whose groups of blocks span the GPU.
//
// In each step every warp receives a part of h (words.cuh) and multiplies it by the block's part
// of R (product.cuh). The warps' sums meet in shared memory. A thread then runs the cell of one
// unit of one row, sends the new h, and writes the outputs while the words travel.
#include "grid/product.cuh"
#include "grid/rows.cuh"
#include "outputs.cuh"

static_assert(CLUSTER == 1, "the forward pass has no clusters");
using Words = Exchange<1>;
using ForwardProduct = Product<1, Cell::RECURRENT * UNITS>;

struct Shared {
    ForwardProduct::SharedWeights weights;
    ForwardProduct::Partials partials[SUM_BUFFERS];  // of exchange e in e % SUM_BUFFERS
    Words::Stage stage[WARPS];
    Rows rows;
    int dead;  // see Watchdog
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "Grid::shared is less than the size of this struct");

// A thread's cells: one unit of CELLS rows.
struct Cells {
    const ForwardCall& call;
    const Sizes& sizes;
    const Place& place;
    const float (&bias)[Cell::GATES];
    Row (&row)[CELLS];
    bool (&exists)[CELLS];
    float (&states)[CELLS][Cell::STATES];
    T (&x)[CELLS][at_least_one(Cell::EXTERNAL)];  // of the next step
    bool (&reset)[CELLS];                         // before the next step

    __device__ __forceinline__ const T* wx(int c, int step) const {
        const int stride = Cell::EXTERNAL * int(sizes.units());
        return call.wx + place.at + Offset(token_of(sizes, row[c], step)) * stride;
    }

    // Starts loading the inputs of a step.
    __device__ __forceinline__ void load(int step) {
#pragma unroll
        for (int c = 0; c < CELLS; ++c) {
            if (!exists[c] || step >= row[c].length) continue;
            const T* from = wx(c, step);
#pragma unroll
            for (int gate = 0; gate < Cell::EXTERNAL; ++gate)
                x[c][gate] = from[gate * sizes.units()];
            if (RAGGED) reset[c] = row[c].reset(sizes, call.resets, step);
            if (step + PREFETCHED >= row[c].length) continue;
            from = wx(c, step + PREFETCHED);
#pragma unroll
            for (int gate = 0; gate < Cell::EXTERNAL; ++gate) prefetch(from + gate * sizes.units());
        }
    }

    // Computes x_t + b.
    __device__ __forceinline__ void add_inputs(float (&gates)[CELLS][Cell::GATES]) const {
#pragma unroll
        for (int c = 0; c < CELLS; ++c) {
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate)
                gates[c][gate] =
                    gate < INNER ? bias[gate]
                                 : bias[gate] + widen(x[c][gate < INNER ? 0 : gate - INNER]);
        }
    }

    // Adds the products `sums` to the gates of cell c, and computes its states after the step.
    __device__ __forceinline__ void run(int c, bool active, bool dead,
                                        const float (&sums)[Cell::RECURRENT],
                                        float (&gates)[Cell::GATES], float (&out)[Cell::STATES]) {
        const bool zeroed = RAGGED && reset[c];
        float before[Cell::STATES], next[Cell::STATES];
#pragma unroll
        for (int gate = 0; gate < Cell::RECURRENT; ++gate)
            gates[gate] += zeroed ? 0.0f : sums[gate];
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) before[s] = zeroed ? 0.0f : states[c][s];
        Cell::forward(before, gates, next);
        if (CLIPS) next[0] = real::clamp(next[0], call.forward_clip);
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) {
            if (dead) next[s] = real::nan();
            out[s] = active ? next[s] : 0.0f;
            states[c][s] = active ? next[s] : states[c][s];
        }
    }
};

// Writes zeros to the outputs after the last step of the longest row.
__device__ __forceinline__ void clear_outputs(const ForwardCall& call, const Place& place,
                                              const Row& row, int steps) {
    const float next[Cell::STATES] = {}, gates[Cell::GATES] = {};
    for (int step = steps; step < call.sizes.time; ++step)
        store_outputs(call, call.sizes, token_of(call.sizes, row, step), place.at, false, next,
                      gates);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grid_forward(const __grid_constant__ ForwardCall call, const __grid_constant__ Watch watch) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const Sizes& sizes = call.sizes;
    const Block block(sizes);
    const Place place(block);
    const Words words(call.exchange, block, sizes.heads);
    Watchdog watchdog(watch, shared.dead, Words::ended(call.exchange));

    clear(shared.dead, shared.stage);
    ForwardProduct product;
    product.load(
        shared.weights, call.r, block.rank_in_cluster,
        [&](int output) {
            const int gate = output % Cell::RECURRENT;
            const int unit = block.unit0 + output / Cell::RECURRENT;
            const int row = (gate * sizes.heads + block.head) * HEAD_DIM + unit;
            return unit < HEAD_DIM ? row * DEPTH : -1;
        },
        [](int, int unit) { return unit; });
    const Words::Sender sender(words, block, place, shared.stage[place.warp]);
    float bias[Cell::GATES];
#pragma unroll
    for (int gate = 0; gate < Cell::GATES; ++gate)
        bias[gate] = place.in_block ? call.b[gate * sizes.units() + place.at] : 0.0f;

    const Offset state_stride = sizes.batch * sizes.units();
    unsigned exchange = 0, since = clock();
    for (int first = block.group * ROWS; first < sizes.batch; first += block.groups * ROWS) {
        shared.rows.take(sizes, call.lengths, first);
        const int steps = shared.rows.steps;
        Row row[CELLS];
        bool exists[CELLS], reset[CELLS];
        float states[CELLS][Cell::STATES];
        T x[CELLS][at_least_one(Cell::EXTERNAL)] = {};
#pragma unroll
        for (int c = 0; c < CELLS; ++c) {
            const int index = place.has(c) ? shared.rows.index[place.row(c)] : -1;
            exists[c] = index >= 0;
            reset[c] = false;
            row[c] = Row(sizes, call.lengths, ::max(index, 0));
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s)
                states[c][s] = exists[c] && call.s0
                                   ? call.s0[s * state_stride + index * sizes.units() + place.at]
                                   : 0.0f;
        }
        Cells cells{call, sizes, place, bias, row, exists, states, x, reset};
        // Sends h of a warp's rows.
        const auto send = [&](int c, float h) {
            if (place.in_block)
                shared.stage[place.warp][place.row_in_warp][place.unit] = saturated<T>(h);
            words.send(sender, c, exchange);
        };
        cells.load(0);
        if (steps > 0) {
            ++exchange;
#pragma unroll
            for (int c = 0; c < CELLS; ++c) send(c, states[c][0]);
        }
        for (int step = 0; step < steps; ++step) {
            ForwardProduct::Partials& partials = shared.partials[exchange % SUM_BUFFERS];
            product.run(words, shared.weights, exchange, since, watchdog, partials);
            float gates[CELLS][Cell::GATES];
            cells.add_inputs(gates);
            __syncthreads();
            since = clock();
            const bool dead = shared.dead;
            ++exchange;
            delay();
            float sums[CELLS][Cell::RECURRENT], next[CELLS][Cell::STATES];
#pragma unroll
            for (int c = 0; c < CELLS; ++c)
                if (exists[c])
                    ForwardProduct::add_up(partials, place.row(c), place.unit * Cell::RECURRENT,
                                           sums[c]);
            if (SUM_BUFFERS == 1) __syncthreads();
#pragma unroll
            for (int c = 0; c < CELLS; ++c) {
                if (place.warp_row(c) >= ROWS) break;
                const bool active = exists[c] && (!RAGGED || step < row[c].length);
                cells.run(c, active, dead, sums[c], gates[c], next[c]);
                if (step + 1 < steps) send(c, states[c][0]);
            }
            cells.load(step + 1);
#pragma unroll
            for (int c = 0; c < CELLS; ++c) {
                if (exists[c])
                    store_outputs(call, sizes, token_of(sizes, row[c], step), place.at,
                                  !RAGGED || step < row[c].length, next[c], gates[c]);
            }
            // The last step sends nothing, so the next rows use its number.
            if (step + 1 == steps) --exchange;
        }
#pragma unroll
        for (int c = 0; c < CELLS; ++c) {
            if (!exists[c]) continue;
            if (RAGGED) clear_outputs(call, place, row[c], steps);
            if (!call.state) continue;
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s)
                call.state[s * state_stride + row[c].index * sizes.units() + place.at] =
                    states[c][s];
        }
    }
}
