// The forward pass of all time steps in one kernel: R stays in registers, h in shared memory.
//
// Grid: BLOCKS blocks, a cluster, for a head and ROWS rows of the batch; each has UNITS of the
// head's units. Nothing wider ever waits: blocks of a cluster hand each other h, different heads
// and rows never meet.
//
// Warps: SPLIT_K for each 8 units, which *compute*, each a part of k, and IO_WARPS that *carry*: they
// fetch wx STAGES - 1 steps ahead and store what was computed the step before, up to 16 bytes a
// lane.
//
// Registers of a computing warp: the rows of R of its 8 units, all gates, for its part of k. A
// thread gets every gate of one unit, lane / 4, for one or two rows of the batch, and keeps their
// states in registers from first to last step.
//
// Shared memory: h [2][ROWS][depth] (a step reads one and writes the other), wx
// [STAGES][Gx][ROWS][UNITS], and what is saved for the backward pass [2][S - 1 + G][ROWS][UNITS].
// Rows are padded, so that they are read without bank conflicts.
constexpr int GROUPS = UNITS / 8, WARPS = GROUPS * SPLIT_K;  // that compute
#if TENSOR_CORES
#include "fused/tensor_cores.cuh"
#else
#include "fused/multiply_add.cuh"
#endif

constexpr int COMPUTING = 32 * WARPS, THREADS = COMPUTING + 32 * IO_WARPS;
constexpr int ALL_STEPS = (HEAD_DIM + 15) / 16;  // of 16 of k
// Of one part: an even number, but for the end of k.
constexpr int STEPS_OF_K = SPLIT_K == 1 ? ALL_STEPS : (ALL_STEPS + 2 * SPLIT_K - 1) / (2 * SPLIT_K) * 2;
constexpr int K_OF_PART = (STEPS_OF_K + 1) / 2 * 2 * 16;
constexpr int H_STRIDE = (K_OF_PART * SPLIT_K > BLOCKS * UNITS ? K_OF_PART * SPLIT_K : BLOCKS * UNITS) + 8;
constexpr int X_STRIDE = UNITS + 8;
// Interleaved gates are stored by the threads that compute them, since one has all gates of a unit.
constexpr int SAVED = SAVES ? Cell::STATES - 1 + (INTERLEAVED ? 0 : Cell::GATES) : 0;
constexpr bool KEEPS_WIDE = SAVES && sizeof(T) < sizeof(float);
constexpr int WIDE_STATES = KEEPS_WIDE ? count(Cell::WIDE) : 0;
constexpr int WIDE = WIDE_STATES + (KEEPS_WIDE ? count(Cell::WIDE_GATES) : 0);
constexpr int WIDE_STRIDE = UNITS + 4;

struct Shared {
    T h[2][ROWS][H_STRIDE];
    T x[STAGES][at_least_one(Cell::EXTERNAL)][ROWS][X_STRIDE];
    T saved[2][at_least_one(SAVED)][ROWS][X_STRIDE];
    float wide[2][at_least_one(WIDE)][ROWS][WIDE_STRIDE];
    float parts[at_least_one(SPLIT_K - 1)][ROWS_OF_LANE * at_least_one(Cell::RECURRENT)][SPLIT_K > 1 ? 32 * GROUPS : 1];
    unsigned resets[STAGES];
    Barrier arrived[2];  // of h[0] and h[1]: this block's warps, and the bytes from the others
};

static_assert(sizeof(Shared) <= SHARED_BYTES, "spread.rs computes less");

// After this, h of the step before and wx of this step are there. Every warp of the block calls it.
__device__ __forceinline__ void wait_for_step(Shared& shared, unsigned step) {
    delay();
    if constexpr (BLOCKS == 1)
        __syncthreads();
#if __CUDA_ARCH__ >= 900
    else  // a buffer of h is complete for the nth time when its barrier's nth phase ends
        shared.arrived[step % 2].wait(step / 2 % 2);
#endif
    if (BLOCK_BARRIERS) __syncthreads();
    delay();
}

// A warp has done its part for step `step`: what it wrote before is there for those who wait. In a
// cluster every warp of the block arrives once for each step.
__device__ __forceinline__ void arrive_for_step(Shared& shared, unsigned step) {
    delay();
    if (BLOCKS == 1) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) shared.arrived[step % 2].arrive();
}

// A gate's part of wx, from the block's first unit.
__device__ __forceinline__ Tensor<const T> x_tensor(const ForwardCall& call, const Block& block, int gate) {
    const Offset units = call.sizes.units();
    return {call.wx + gate * units + block.place(), Cell::EXTERNAL * units};
}

__device__ __forceinline__ void compute(const ForwardCall& call, const Block& block, Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
    const int group = warp % GROUPS, part = warp / GROUPS, first_unit = group * 8;
    const int unit = block.unit0 + first_unit + r;
    const bool unit_exists = unit < HEAD_DIM;
    const Offset place = Offset(block.head) * HEAD_DIM + unit;

    ForwardProduct<STEPS_OF_K> product;
    product.load(unit_exists ? call.r + place * DEPTH : nullptr, sizes.units() * DEPTH, part * K_OF_PART);
    float bias[Cell::GATES];
#pragma unroll
    for (int gate = 0; gate < Cell::GATES; ++gate)
        bias[gate] = unit_exists ? call.b[gate * sizes.units() + place] : 0.0f;

    const Offset state_stride = sizes.batch * sizes.units();
    float states[ROWS_OF_LANE][Cell::STATES];
    int lengths[ROWS_OF_LANE];
#pragma unroll
    for (int j = 0; j < ROWS_OF_LANE; ++j) {
        const int row = q * ROWS_OF_LANE + j;
        const bool exists = row < block.rows && unit_exists;
        lengths[j] = exists ? Row(sizes, call.lengths, block.row0 + row).length : 0;
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s)
            states[j][s] = exists && call.s0
                               ? call.s0[s * state_stride + (block.row0 + row) * sizes.units() + place]
                               : 0.0f;
    }
#if __CUDA_ARCH__ >= 900
    const unsigned own_rank = BLOCKS == 1 ? 0 : block_in_cluster();
#endif
    const Shifts x_shifts(Cell::EXTERNAL, [&](int gate) { return x_tensor(call, block, gate); });
    const auto row_of = [&](int j) { return block.row0 + q * ROWS_OF_LANE + j; };
    const auto length_of = [&](int j) { return RAGGED ? lengths[j] : sizes.time; };
    const TokenBit token_bits[2] = {{sizes, row_of(0)}, {sizes, row_of(ROWS_OF_LANE - 1)}};

    arrive_for_step(shared, 0);
    for (unsigned step = 0; step < unsigned(sizes.time); ++step) {
        wait_for_step(shared, step);
        const unsigned now = step % 2, next_buffer = 1 - now, stage = step % STAGES;
#if __CUDA_ARCH__ >= 900
        // The other blocks' units.
        if (BLOCKS > 1 && threadIdx.x == 0) shared.arrived[next_buffer].expect((BLOCKS - 1) * UNITS * ROWS * sizeof(T));
#endif

        float sums[ROWS_OF_LANE][at_least_one(Cell::RECURRENT)];
        product.run(shared.h[now][0], H_STRIDE, sums);
        if constexpr (SPLIT_K > 1) {
            constexpr int N = ROWS_OF_LANE * Cell::RECURRENT;
            if (part > 0) {
#pragma unroll
                for (int i = 0; i < N; ++i)
                    shared.parts[part - 1][i][group * 32 + lane] = sums[i / Cell::RECURRENT][i % Cell::RECURRENT];
            }
            delay();
            if (BLOCK_BARRIERS)
                __syncthreads();
            else
                named_barrier(COMPUTING);
            if (part > 0) {
                arrive_for_step(shared, step + 1);
                continue;
            }
#pragma unroll
            for (int other = 0; other < SPLIT_K - 1; ++other) {
#pragma unroll
                for (int i = 0; i < N; ++i)
                    sums[i / Cell::RECURRENT][i % Cell::RECURRENT] += shared.parts[other][i][group * 32 + lane];
            }
        }

        // While they multiply: the gates without the product.
        float x[at_least_one(Cell::EXTERNAL)][ROWS_OF_LANE], gates[ROWS_OF_LANE][Cell::GATES];
        if constexpr (SHIFTED) {
#pragma unroll
            for (int j = 0; j < ROWS_OF_LANE; ++j) {
                const int row = q * ROWS_OF_LANE + j;
                const unsigned shifts = x_shifts.at(token_bits[j].at(sizes, row_of(j), length_of(j), step));
#pragma unroll
                for (int gate = 0; gate < Cell::EXTERNAL; ++gate)
                    x[gate][j] = widen(shared.x[stage][gate][row][first_unit + r + (shifts >> gate & 1)]);
            }
        } else {
            load_tensors<Cell::EXTERNAL>(x, &shared.x[stage][0][0][first_unit], ROWS * X_STRIDE, X_STRIDE);
        }
#pragma unroll
        for (int j = 0; j < ROWS_OF_LANE; ++j) {
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate)
                gates[j][gate] = gate < INNER ? bias[gate] : bias[gate] + x[gate < INNER ? 0 : gate - INNER][j];
        }
        const unsigned resets = RAGGED && call.resets ? shared.resets[stage] : 0;

#pragma unroll
        for (int j = 0; j < ROWS_OF_LANE; ++j) {
            // Units that do not exist stay 0, so that no product takes what their gates become.
            const bool active = RAGGED ? int(step) < lengths[j] : HEAD_DIM % UNITS == 0 || unit_exists;
            const bool reset = resets >> (q * ROWS_OF_LANE + j) & 1;
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

        float h[1][ROWS_OF_LANE];
#pragma unroll
        for (int j = 0; j < ROWS_OF_LANE; ++j) h[0][j] = states[j][0];
        store_tensors<1>(h, &shared.h[next_buffer][0][block.unit0 + first_unit], 0, H_STRIDE);
        if constexpr (BLOCKS > 1) {
#if __CUDA_ARCH__ >= 900
            __syncwarp();
            // The warp's 8 units in pieces of 16 bytes: piece l % PIECES to blocks l / PIECES, and
            // so on.
            constexpr int OF_ROW = 8 * sizeof(T) / 16, PIECES = ROWS * OF_ROW;
            const T* piece = &shared.h[next_buffer][lane % PIECES / OF_ROW][block.unit0 + first_unit + lane % OF_ROW * int(16 / sizeof(T))];
            const uint4 v = *reinterpret_cast<const uint4*>(piece);
            const unsigned there = shared_address(piece), barrier = shared_address(&shared.arrived[next_buffer]);
#pragma unroll
            for (int first = 0; first < BLOCKS; first += 32 / PIECES) {
                const unsigned rank = first + lane / PIECES;
                if (rank < BLOCKS && rank != own_rank) send(address_in(there, rank), v, address_in(barrier, rank));
            }
#endif
        }
        if constexpr (SAVES) {
            float v[at_least_one(SAVED)][ROWS_OF_LANE];
#pragma unroll
            for (int j = 0; j < ROWS_OF_LANE; ++j) {
#pragma unroll
                for (int i = 0; i < SAVED; ++i)
                    v[i][j] = i < Cell::STATES - 1 ? states[j][::min(i + 1, Cell::STATES - 1)] : gates[j][::max(0, i - (Cell::STATES - 1))];
            }
            if constexpr (INTERLEAVED) {
#pragma unroll
                for (int j = 0; j < ROWS_OF_LANE; ++j) {
                    if (!call.save_gates || !unit_exists || row_of(j) >= sizes.batch) continue;
                    AllGates all;
#pragma unroll
                    for (int gate = 0; gate < TOGETHER_GATES; ++gate)
                        all.of[gate] = saturated<T>(!RAGGED || int(step) < lengths[j] ? gates[j][gate] : 0.0f);
                    const Offset token = token_of(sizes, row_of(j), length_of(j), step);
                    T* const to = call.gates.external + (token * sizes.units() + place) * Cell::GATES;
                    if constexpr (COPY_BYTES == 1) {
#pragma unroll
                        for (int gate = 0; gate < TOGETHER_GATES; ++gate) to[gate] = all.of[gate];
                    } else {
                        *reinterpret_cast<AllGates*>(to) = all;
                    }
                }
            }
            store_tensors<SAVED>(v, &shared.saved[now][0][0][first_unit], ROWS * X_STRIDE, X_STRIDE);
#pragma unroll
            for (int j = 0; j < ROWS_OF_LANE; ++j) {
                const auto put = [&](int which, float v) { shared.wide[now][which][q * ROWS_OF_LANE + j][first_unit + r] = v; };
#pragma unroll
                for (int s = 0; s < Cell::STATES; ++s)
                    if (kept_wide(Cell::WIDE, s)) put(rank(Cell::WIDE, s), states[j][s]);
#pragma unroll
                for (int gate = 0; gate < Cell::GATES; ++gate)
                    if (kept_wide(Cell::WIDE_GATES, gate)) put(WIDE_STATES + rank(Cell::WIDE_GATES, gate), gates[j][gate]);
            }
        }
        arrive_for_step(shared, step + 1);
    }
    wait_for_step(shared, sizes.time);
    if (call.carried && part == 0) {
#pragma unroll
        for (int j = 0; j < ROWS_OF_LANE; ++j) {
            const int row = q * ROWS_OF_LANE + j;
            if (row >= block.rows || !unit_exists) continue;
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s)
                call.carried[s * state_stride + (block.row0 + row) * sizes.units() + place] = states[j][s];
        }
    }
}

__device__ __forceinline__ void carry(const ForwardCall& call, const Block& block, Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int r = carrying_thread() / LANES;
    const bool row_exists = r < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? r : 0));
    const Walk walk(sizes, row, 0, 1);
    const Offset units = sizes.units(), tensor = sizes.tokens() * units, place = block.place();

    Pieces<const T, Cell::EXTERNAL, ROWS * X_STRIDE, X_STRIDE> x(
        block, walk, [&](int gate) { return x_tensor(call, block, gate); });
    Pieces<T, 2, 0, H_STRIDE> h(block, walk, [&](int which) {
        T* to = which == 0 ? call.h : call.states;
        return Tensor<T>{to ? to + place : nullptr, units};
    });
    Pieces<T, SAVED, ROWS * X_STRIDE, X_STRIDE> saved(block, walk, [&](int which) {
        const int gate = which - (Cell::STATES - 1);
        if (gate < 0) return Tensor<T>{call.states ? call.states + (which + 1) * tensor + place : nullptr, units};
        return call.save_gates ? gate_tensor(call.gates, sizes, gate, place) : Tensor<T>{nullptr, 0};
    });
    Pieces<float, WIDE, ROWS * WIDE_STRIDE, WIDE_STRIDE> wide(block, walk, [&](int which) {
        float* to = which < WIDE_STATES ? call.wide_states : call.save_gates ? call.wide_gates : nullptr;
        const int of = which < WIDE_STATES ? which : which - WIDE_STATES;
        return Tensor<float>{to ? to + of * tensor + place : nullptr, units};
    });

    // The first carrying warp asks for the rows' resets, a lane a row.
    const Row asked(sizes, call.lengths, block.row0 + ::min(carrying_thread(), block.rows - 1));
    const SharedAddresses at(&shared);
    const auto fetch = [&](int step) {
        const int stage = step % STAGES;
        if (step < sizes.time && row_exists) x.fetch(at(&shared.x[stage][0][0][0]), row.token(sizes, step));
        if (RAGGED && call.resets && carrying_thread() < 32 && step < sizes.time) {
            const bool set = carrying_thread() < block.rows && asked.reset(sizes, call.resets, step);
            const unsigned mask = __ballot_sync(~0u, set);
            if (carrying_thread() == 0) shared.resets[stage] = mask;
        }
        end_copy_group();
    };
    const auto store = [&](int step) {
        if (!row_exists) return;
        const bool active = !RAGGED || row.active(step);
        const Offset token = row.token(sizes, step);
        h.store(at(&shared.h[(step + 1) % 2][0][block.unit0]), token, active);
        saved.store(at(&shared.saved[step % 2][0][0][0]), token, active);
        wide.store(at(&shared.wide[step % 2][0][0][0]), token, active);
    };

    for (int step = 0; step < STAGES - 1; ++step) fetch(step);
    for (int step = 0; step <= sizes.time; ++step) {
        wait_for_copies<STAGES - 2>();
        // wx of this step is there, and what was stored last may be overwritten: the computing
        // warps may go on.
        arrive_for_step(shared, step);
        wait_for_step(shared, step);
        if (BLOCK_BARRIERS && SPLIT_K > 1 && step < sizes.time) __syncthreads();  // with those who compute, for the sum of parts
        if (step > 0) store(step - 1);
        if (step < sizes.time) fetch(step + STAGES - 1);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) fused_forward(const __grid_constant__ ForwardCall call) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const Sizes& sizes = call.sizes;
    const Block block(sizes);

    // h before the first step, of all the head's units; zeros where there is no row or unit.
    for (int i = threadIdx.x; i < 2 * ROWS * H_STRIDE; i += THREADS) {
        const int buffer = i / (ROWS * H_STRIDE), row = i / H_STRIDE % ROWS, unit = i % H_STRIDE;
        const bool exists = buffer == 0 && call.s0 && row < block.rows && unit < HEAD_DIM;
        const Offset at = Offset(block.row0 + row) * sizes.units() + Offset(block.head) * HEAD_DIM + unit;
        shared.h[buffer][row][unit] = saturated<T>(exists ? call.s0[at] : 0.0f);
    }
    for (int i = threadIdx.x; i < int(sizeof(shared.x) / sizeof(unsigned)); i += THREADS)
        reinterpret_cast<unsigned*>(shared.x)[i] = 0;
    if constexpr (BLOCKS > 1) {
        if (threadIdx.x == 0) {
            shared.arrived[0].init(WARPS + IO_WARPS);
            shared.arrived[1].init(WARPS + IO_WARPS);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
#if __CUDA_ARCH__ >= 900
        cluster_barrier();
#endif
    } else {
        __syncthreads();
    }
    if (threadIdx.x < COMPUTING)
        compute(call, block, shared);
    else
        carry(call, block, shared);
    if constexpr (BLOCKS > 1) {
#if __CUDA_ARCH__ >= 900
        __syncwarp();
        cluster_barrier();  // no block leaves while others may still send to it
#endif
    }
}
