// The backward pass of all time steps in one kernel whose groups of blocks span the GPU.
//
// As in forward.cu, but the blocks exchange dg of the recurrent gates, and the product with R
// transposed is the gradient that reaches h of the previous step through R. The part of the cell's
// derivative that does not depend on this gradient (`linearize`) is computed while the words
// travel.
#include "grid/parts.cuh"
#include "grid/product.cuh"
#include "grid/rows.cuh"

using Words = Exchange<Cell::RECURRENT>;
using BackwardProduct = Product<Cell::RECURRENT, CLUSTER * UNITS>;

struct Shared {
    BackwardProduct::SharedWeights weights;
    BackwardProduct::Partials partials[SUM_BUFFERS];  // of exchange e in e % SUM_BUFFERS
    Parts parts;
    Words::Stage stage[WARPS];
    Rows rows;
    int dead;  // see Watchdog
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "Grid::shared is less than the size of this struct");

constexpr int WIDE_STATES = count(Cell::WIDE), WIDE_GATES = count(Cell::WIDE_GATES);

// What a step reads of one cell: one unit of one row.
struct Loaded {
    T gates[Cell::GATES], before[Cell::STATES], d[Cell::STATES];
    float wide_gates[at_least_one(WIDE_GATES)], wide_before[at_least_one(WIDE_STATES)];
    bool reset;  // the state is zeroed before the step
};

// What is computed for a step of one cell before the gradient through R is known.
struct Linear {
    float residuals[Cell::RESIDUALS], d[Cell::STATES];
    bool active;        // 0 <= step < length
    bool from_outside;  // no gradient comes from the next step: this is the row's last step, or the
                        // state is reset after it
    bool clipped;       // h was clipped, so its gradient is 0
    bool reset;         // the state is zeroed before the step
};

// The tensors at one unit of a row.
struct CellOfRow {
    const BackwardCall& call;
    const Sizes& sizes;
    const Row& row;
    Offset place;  // index of the unit in [N, D]
    bool exists;

    __device__ __forceinline__ Offset at(int token) const {
        return Offset(token) * int(sizes.units()) + place;
    }
    __device__ __forceinline__ Offset state() const { return row.index * sizes.units() + place; }

    // Starts loading what a step reads.
    __device__ __forceinline__ void load(int step, Loaded& loaded) const {
        if (!exists || step < 0 || step >= row.length) return;
        const Offset stride = sizes.tokens() * sizes.units();
        const int token = token_of(sizes, row, step);
        const Offset here = at(token), previous = at(token_of(sizes, row, ::max(step - 1, 0)));
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate) {
            if (kept_wide(Cell::WIDE_GATES, gate)) {
                const int i = rank(Cell::WIDE_GATES, gate);
                loaded.wide_gates[i] = call.wide_gates[i * stride + here];
            } else {
                loaded.gates[gate] = call.gates.at(sizes, token, gate, place);
            }
        }
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) {
            if (kept_wide(Cell::WIDE, s)) {
                const int i = rank(Cell::WIDE, s);
                loaded.wide_before[i] = call.wide_states[i * stride + previous];
            } else {
                loaded.before[s] = call.states[s * stride + previous];
            }
            if (s < call.d_states_count) loaded.d[s] = call.d_states[s * stride + here];
        }
        if (RAGGED) loaded.reset = row.reset(sizes, call.resets, step);
        if (step < PREFETCHED) return;
        const int later = token_of(sizes, row, step - PREFETCHED);
        const Offset there = at(later);
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate)
            prefetch(&call.gates.at(sizes, later, gate, place));
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) {
            prefetch(&call.states[s * stride + there]);
            if (s < call.d_states_count) prefetch(&call.d_states[s * stride + there]);
        }
    }

    // Computes `linear` from the values that `load` has loaded for a step. `reset_after` tells
    // whether the state is zeroed before the next step.
    __device__ __forceinline__ void linearize(int step, const Loaded& loaded, bool reset_after,
                                              Linear& linear) const {
        const Offset state_stride = sizes.batch * sizes.units();
        const bool last = step == row.length - 1;
        linear.active = exists && step >= 0 && step < row.length;
        linear.from_outside = last || reset_after;
        linear.clipped = false;
        linear.reset = RAGGED && linear.active && loaded.reset;
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) {
            linear.d[s] = 0.0f;
            if (exists && last && call.d_last)
                linear.d[s] = call.d_last[s * state_stride + state()];
            if (linear.active && s < call.d_states_count) linear.d[s] += widen(loaded.d[s]);
        }
        if (!linear.active) return;
        float before[Cell::STATES], gates[Cell::GATES];
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate)
            gates[gate] = kept_wide(Cell::WIDE_GATES, gate)
                              ? loaded.wide_gates[rank(Cell::WIDE_GATES, gate)]
                              : widen(loaded.gates[gate]);
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) {
            before[s] = kept_wide(Cell::WIDE, s) ? loaded.wide_before[rank(Cell::WIDE, s)]
                                                 : widen(loaded.before[s]);
            if (step == 0) before[s] = call.s0 ? call.s0[s * state_stride + state()] : 0.0f;
            if (linear.reset) before[s] = 0.0f;
        }
        Cell::linearize(before, gates, linear.residuals);
        if (CLIPS) {
            float next[Cell::STATES];
            Cell::forward(before, gates, next);
            linear.clipped = real::abs(next[0]) > call.forward_clip;
        }
    }

    // Writes dg of a step.
    __device__ __forceinline__ void store(int step, const float (&d_gates)[Cell::GATES]) const {
        const int token = token_of(sizes, row, step);
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate)
            narrow(d_gates[gate], call.d_gates.at(sizes, token, gate, place));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grid_backward(const __grid_constant__ BackwardCall call, const __grid_constant__ Watch watch) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const Sizes& sizes = call.sizes;
    const Block block(sizes);
    const Place place(block);
    const Words words(call.exchange, block, sizes.heads);
    Watchdog watchdog(watch, shared.dead, Words::ended(call.exchange));

    clear(shared.dead, shared.stage);
    shared.parts.open();
    BackwardProduct product;
    product.load(
        shared.weights, call.r, block.rank_in_cluster,
        [&](int output) {
            const int unit = block.cluster * CLUSTER * UNITS + output;
            const int row = block.head * HEAD_DIM + unit;
            return unit < HEAD_DIM ? row * Cell::RECURRENT * DEPTH : -1;
        },
        [](int gate, int unit) { return gate * DEPTH + unit; });

    const Words::Sender sender(words, block, place, shared.stage[place.warp]);
    const int last_step = call.d_s0 ? -1 : 0;
    unsigned exchange = 0, products = 0, since = clock();
    for (int first = block.group * ROWS; first < sizes.batch; first += block.groups * ROWS) {
        shared.rows.take(sizes, call.lengths, first);
        const int steps = shared.rows.steps;
        Row row[CELLS];
        bool exists[CELLS] = {};
        Loaded loaded[CELLS];
        Linear linear[CELLS];
        float d_state[CELLS][Cell::STATES] = {};
        const auto cell_of_row = [&](int c) {
            return CellOfRow{call, sizes, row[c], place.at, exists[c]};
        };
#pragma unroll
        for (int c = 0; c < CELLS; ++c) {
            const int index = place.has(c) ? shared.rows.index[place.row(c)] : -1;
            exists[c] = index >= 0;
            row[c] = Row(sizes, call.lengths, ::max(index, 0));
            loaded[c] = Loaded{};
            cell_of_row(c).load(steps - 1, loaded[c]);
            cell_of_row(c).linearize(steps - 1, loaded[c], false, linear[c]);
            cell_of_row(c).load(steps - 2, loaded[c]);
            if (RAGGED && exists[c])
                for (int step = steps; step < sizes.time; ++step)
                    cell_of_row(c).store(step, {});
        }
        for (int step = steps - 1; step >= last_step; --step) {
            BackwardProduct::Partials& partials = shared.partials[exchange % SUM_BUFFERS];
            // The longest row's last step is processed first, when there is no dg yet.
            if (step < steps - 1) {
                product.run(words, shared.weights, exchange, since, watchdog, partials);
                __syncthreads();
                delay();
                shared.parts.exchange<BackwardProduct>(block, partials, products++);
                since = clock();
            }
            const bool dead = shared.dead, sends = step > last_step;
            if (sends) ++exchange;
            float dh[CELLS] = {}, d_gates[CELLS][Cell::GATES] = {};
            if (step < steps - 1) {
#pragma unroll
                for (int c = 0; c < CELLS; ++c)
                    if (exists[c])
                        dh[c] = shared.parts.sum<BackwardProduct>(partials, place.row(c),
                                                                  place.unit, products - 1);
                if (CLUSTER == 1 && SUM_BUFFERS == 1) __syncthreads();
            }
#pragma unroll
            for (int c = 0; c < CELLS; ++c) {
                if (place.warp_row(c) >= ROWS) break;
                float d[Cell::STATES];
                const bool inside = exists[c] && !linear[c].from_outside;
#pragma unroll
                for (int s = 0; s < Cell::STATES; ++s)
                    d[s] = linear[c].d[s] + (inside ? d_state[c][s] : 0.0f);
                if (CLIPS)
                    dh[c] = call.cut_recurrent_grad ? 0.0f
                                                    : real::clamp(dh[c], call.recurrent_grad_clip);
                if (inside) d[0] += dh[c];
                if (dead) d[0] = real::nan();
                if (step < 0) {
#pragma unroll
                    for (int s = 0; s < Cell::STATES; ++s) {
                        if (exists[c])
                            call.d_s0[s * sizes.batch * sizes.units() + cell_of_row(c).state()] =
                                Cell::CONSTANT >> s & 1 ? 0.0f : d[s];
                    }
                    continue;
                }
                if (linear[c].active) {
                    if (CLIPS && linear[c].clipped) d[0] = 0.0f;
                    Cell::backward(linear[c].residuals, d, d_state[c], d_gates[c]);
                }
                if (!sends) continue;
                if (place.in_block) {
                    T* const stage = shared.stage[place.warp][place.row_in_warp];
#pragma unroll
                    for (int gate = 0; gate < Cell::RECURRENT; ++gate)
                        stage[gate * UNITS + place.unit] = rounded<T>(d_gates[c][gate]);
                }
                words.send(sender, c, exchange);
            }
            if (step < 0) break;
#pragma unroll
            for (int c = 0; c < CELLS; ++c) {
                if (place.warp_row(c) >= ROWS) break;
                const CellOfRow cell = cell_of_row(c);
                if (exists[c]) cell.store(step, d_gates[c]);
                cell.linearize(step - 1, loaded[c], linear[c].reset, linear[c]);
                cell.load(step - 2, loaded[c]);
            }
        }
    }
}
