// The forward pass of all time steps in one kernel: R stays in registers, h in shared memory.
//
// Grid: BLOCKS blocks, a cluster, for a head and ROWS rows of the batch; each has UNITS of the head's units. Nothing wider ever
// waits: blocks of a cluster hand each other h, different heads and rows never meet.
//
// Warps: one for each 8 units, which *compute*, and HELPERS that *carry*: they fetch wx STAGES - 1 steps ahead and store what
// was computed the step before, 16 bytes a lane.
//
// Registers of a computing warp: the rows of R of its 8 units, all gates, as A of the tensor cores' m16n8k16: tile i holds
// gates 2i (rows 0 to 7) and 2i + 1 (rows 8 to 15) of the 8 units. The batch is n. So each thread gets every gate of one unit,
// lane / 4, for batch rows 2 (lane % 4) and the next, and keeps their states in registers from first to last step. With 4 rows
// every row is two columns of n, the second of which nobody looks at, and a thread has one row: half the pointwise work.
//
// Shared memory: h [2][ROWS][depth] (a step reads one and writes the other), wx [STAGES][Gx][ROWS][UNITS], and what is saved
// for the backward pass [2][S - 1 + G][ROWS][UNITS]. Rows are 16 bytes longer, so that matrices load without bank conflicts.
constexpr int WARPS = UNITS / 8;  // that compute
#include "carry.cuh"

constexpr int THREADS = 32 * (WARPS + HELPERS);
constexpr int MINE = ROWS / 4;  // rows of a computing thread
constexpr int TILES = (Cell::RECURRENT + 1) / 2;
constexpr int DEPTH = (HEAD_DIM + 31) / 32 * 32;  // of packed R and of h here
constexpr int STEPS_OF_K = (HEAD_DIM + 15) / 16;
constexpr int H_STRIDE = (DEPTH > BLOCKS * UNITS ? DEPTH : BLOCKS * UNITS) + 8;
constexpr int X_STRIDE = UNITS + 8;
constexpr int SAVED = SAVES ? Cell::STATES - 1 + Cell::GATES : 0;
constexpr int WIDE_STATES = SAVES ? count(Cell::WIDE) : 0;
constexpr int WIDE = SAVES ? count(Cell::WIDE) + count(Cell::WIDE_GATES) : 0;
constexpr int WIDE_STRIDE = UNITS + 4;

struct Shared {
    T h[2][ROWS][H_STRIDE];
    T x[STAGES][at_least_one(Cell::EXTERNAL)][ROWS][X_STRIDE];
    T saved[2][at_least_one(SAVED)][ROWS][X_STRIDE];
    float wide[2][at_least_one(WIDE)][ROWS][WIDE_STRIDE];
    unsigned resets[STAGES];
    Barrier arrived[2];  // of h[0] and h[1]: this block's warps, and the bytes from the others
};

static_assert(sizeof(Shared) <= SHARED_BYTES, "select.rs computes less");

// After this, h of the step before and wx of this step are there. Every warp of the block calls it.
__device__ __forceinline__ void wait_for_step(Shared& shared, unsigned step) {
#if __CUDA_ARCH__ >= 900
    // A buffer of h is complete for the nth time when its barrier's nth phase ends.
    if (BLOCKS > 1) return shared.arrived[step % 2].wait(step / 2 % 2);
#endif
    __syncthreads();
}

// A warp has done its part for step `step`: what it wrote before is there for those who wait. In a cluster every warp of the block
// arrives once for each step.
__device__ __forceinline__ void arrive_for_step(Shared& shared, unsigned step) {
    if (BLOCKS == 1) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) shared.arrived[step % 2].arrive();
}

__device__ __forceinline__ void compute(const ForwardCall& call, const Block& block, Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
    const int unit = block.unit0 + warp * 8 + r;
    const bool unit_exists = unit < HEAD_DIM;
    const Offset place = Offset(block.head) * HEAD_DIM + unit;

    unsigned weights[TILES][STEPS_OF_K][4];
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int gate = tile * 2 + half;
            const bool exists = gate < Cell::RECURRENT && unit_exists;
            const T* row = call.r + ((Offset(gate) * sizes.heads + block.head) * HEAD_DIM + unit) * DEPTH + q * 2;
#pragma unroll
            for (int k = 0; k < STEPS_OF_K; ++k) {
                weights[tile][k][half] = exists ? *reinterpret_cast<const unsigned*>(row + k * 16) : 0u;
                weights[tile][k][half + 2] = exists ? *reinterpret_cast<const unsigned*>(row + k * 16 + 8) : 0u;
            }
        }
    }
    float bias[Cell::GATES];
#pragma unroll
    for (int gate = 0; gate < Cell::GATES; ++gate)
        bias[gate] = unit_exists ? call.b[gate * sizes.units() + place] : 0.0f;

    const Offset state_stride = sizes.batch * sizes.units();
    float states[MINE][Cell::STATES];
    int lengths[MINE];
#pragma unroll
    for (int j = 0; j < MINE; ++j) {
        const int row = q * MINE + j;
        const bool exists = row < block.rows && unit_exists;
        lengths[j] = exists ? Row(sizes, call.lengths, block.row0 + row).length : 0;
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s)
            states[j][s] = exists && call.s0
                               ? call.s0[s * state_stride + (block.row0 + row) * sizes.units() + place]
                               : 0.0f;
    }

    // Addresses of this lane's rows of the matrices.
    const int row_of_column = lane % 8 * ROWS / 8;
    const unsigned h_of = shared_address(&shared.h[0][row_of_column][lane / 8 * 8]);
    constexpr unsigned H_BYTES = sizeof(shared.h[0]), X_BYTES = sizeof(shared.x[0]), GATE_BYTES = sizeof(shared.x[0][0]);
    const unsigned x_of = shared_address(&shared.x[0][0][row_of_column][warp * 8]);
#if __CUDA_ARCH__ >= 900
    // Lane l sends row l % ROWS of its warp's 8 units to blocks l / ROWS, and so on.
    const unsigned own_rank = BLOCKS == 1 ? 0 : block_in_cluster();
#endif

    arrive_for_step(shared, 0);
    for (unsigned step = 0; step < unsigned(sizes.time); ++step) {
        wait_for_step(shared, step);
        const unsigned now = step % 2, next_buffer = 1 - now, stage = step % STAGES;
#if __CUDA_ARCH__ >= 900
        // Each of the other blocks' warps sends ROWS rows of 16 bytes.
        if (BLOCKS > 1 && threadIdx.x == 0) shared.arrived[next_buffer].expect((BLOCKS - 1) * WARPS * ROWS * 16);
#endif

        // Where k is long, two sums a tile, so that the tensor cores need not wait for one of them.
        constexpr int CHAINS = STEPS_OF_K > 8 ? 2 : 1;
        float sums[TILES][CHAINS][4] = {};
#pragma unroll
        for (int k = 0; k < STEPS_OF_K; k += 2) {
            unsigned h[4];
            load_matrices<false>(h, h_of + now * H_BYTES + k * 16 * sizeof(T));
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                mma(sums[tile][0], weights[tile][k], h[0], h[1]);
            }
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                if (k + 1 < STEPS_OF_K)
                    mma(sums[tile][CHAINS - 1], weights[tile][k + 1 < STEPS_OF_K ? k + 1 : k], h[2], h[3]);
            }
        }

        // While they multiply: the gates without the product.
        float gates[MINE][Cell::GATES];
#pragma unroll
        for (int j = 0; j < MINE; ++j) {
#pragma unroll
            for (int gate = 0; gate < INNER; ++gate) gates[j][gate] = bias[gate];
        }
#pragma unroll
        for (int first = 0; first < Cell::EXTERNAL; first += 4) {
            const int gate = ::min(first + lane / 8, Cell::EXTERNAL - 1);
            unsigned x[4];
            load_matrices<true>(x, x_of + stage * X_BYTES + gate * GATE_BYTES);
#pragma unroll
            for (int i = 0; i < 4 && first + i < Cell::EXTERNAL; ++i) {
#pragma unroll
                for (int j = 0; j < MINE; ++j)
                    gates[j][INNER + first + i] = bias[INNER + first + i] + (j == 0 ? low(x[i]) : high(x[i]));
            }
        }
        const unsigned resets = RAGGED && call.resets ? shared.resets[stage] : 0;

#pragma unroll
        for (int j = 0; j < MINE; ++j) {
            // Units that do not exist stay 0, so that no product takes what their gates become.
            const bool active = RAGGED ? int(step) < lengths[j] : HEAD_DIM % UNITS == 0 || unit_exists;
            const bool reset = resets >> (q * MINE + j) & 1;
#pragma unroll
            for (int gate = 0; gate < Cell::RECURRENT; ++gate) {
                const int at = gate % 2 * 2 + j;
                float sum = sums[gate / 2][0][at];
                if (CHAINS == 2) sum += sums[gate / 2][1][at];
                gates[j][gate] += reset ? 0.0f : sum;
            }
            float before[Cell::STATES], next[Cell::STATES];
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s) before[s] = reset ? 0.0f : states[j][s];
            Cell::forward(before, gates[j], next);
            if (CLIPS) next[0] = real::clamp(next[0], call.forward_clip);
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s) states[j][s] = active ? next[s] : states[j][s];
        }

        if constexpr (MINE == 2) {
            store_transposed<1>({pack(states[0][0], states[1][0])}, [&](int, int row) {
                return &shared.h[next_buffer][row][block.unit0 + warp * 8];
            });
        } else {
            shared.h[next_buffer][q][block.unit0 + warp * 8 + r] = rounded<T>(states[0][0]);
        }
        if constexpr (BLOCKS > 1) {
#if __CUDA_ARCH__ >= 900
            __syncwarp();
            const T* piece = &shared.h[next_buffer][lane % ROWS][block.unit0 + warp * 8];
            const uint4 v = *reinterpret_cast<const uint4*>(piece);
            const unsigned there = shared_address(piece), barrier = shared_address(&shared.arrived[next_buffer]);
#pragma unroll
            for (int first = 0; first < BLOCKS; first += 32 / ROWS) {
                const unsigned rank = first + lane / ROWS;
                if (rank < BLOCKS && rank != own_rank) send(address_in(there, rank), v, address_in(barrier, rank));
            }
#endif
        }
        if constexpr (SAVES) {
            // A matrix holds 8 rows: all of a tensor, or the 4 of each of two.
            constexpr int OF_MATRIX = 8 / ROWS, MATRICES = (SAVED + OF_MATRIX - 1) / OF_MATRIX;
            constexpr int COUNT = MATRICES > 2 ? 4 : at_least_one(MATRICES);
            const auto value = [&](int which, int j) {
                which = ::min(which, SAVED - 1);
                return which < Cell::STATES - 1 ? states[j][which + 1] : gates[j][which - (Cell::STATES - 1)];
            };
#pragma unroll
            for (int first = 0; first < MATRICES; first += COUNT) {
                unsigned matrices[COUNT];
#pragma unroll
                for (int i = 0; i < COUNT; ++i) {
                    const int which = ::min(first + i, MATRICES - 1) * OF_MATRIX;
                    matrices[i] = pack(value(which, 0), MINE == 2 ? value(which, MINE - 1) : value(which + 1, 0));
                }
                store_transposed<COUNT>(matrices, [&](int i, int row) {
                    const int which = ::min(first + i, MATRICES - 1) * OF_MATRIX + row % OF_MATRIX;
                    return &shared.saved[now][::min(which, SAVED - 1)][row / OF_MATRIX][warp * 8];
                });
            }
#pragma unroll
            for (int j = 0; j < MINE; ++j) {
                const auto put = [&](int which, float v) { shared.wide[now][which][q * MINE + j][warp * 8 + r] = v; };
#pragma unroll
                for (int s = 0; s < Cell::STATES; ++s)
                    if (Cell::WIDE >> s & 1) put(rank(Cell::WIDE, s), states[j][s]);
#pragma unroll
                for (int gate = 0; gate < Cell::GATES; ++gate)
                    if (Cell::WIDE_GATES >> gate & 1) put(WIDE_STATES + rank(Cell::WIDE_GATES, gate), gates[j][gate]);
            }
        }
        arrive_for_step(shared, step + 1);
    }
    wait_for_step(shared, sizes.time);
    if (call.carried) {
#pragma unroll
        for (int j = 0; j < MINE; ++j) {
            const int row = q * MINE + j;
            if (row >= block.rows || !unit_exists) continue;
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s)
                call.carried[s * state_stride + (block.row0 + row) * sizes.units() + place] = states[j][s];
        }
    }
}

__device__ __forceinline__ void carry(const ForwardCall& call, const Block& block, Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int helper = threadIdx.x / 32 - WARPS, lane = threadIdx.x % 32, r = helping_row();
    const bool row_exists = r < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? r : 0));
    const Walk walk(sizes, row, 0, 1);
    const Offset units = sizes.units(), tensor = sizes.tokens() * units, place = block.place();

    Pieces<const T, Cell::EXTERNAL, ROWS * X_STRIDE, X_STRIDE> x(block, walk, [&](int gate) {
        return Tensor<const T>{call.wx + gate * units + place, Cell::EXTERNAL * units};
    });
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

    const auto fetch = [&](int step) {
        const int stage = step % STAGES;
        if (step < sizes.time && row_exists) x.fetch(&shared.x[stage][0][0][0], row.token(sizes, step));
        if (RAGGED && call.resets && helper == 0 && step < sizes.time) {
            const bool set = row_exists && lane % LANES == 0 && row.reset(sizes, call.resets, step);
            const unsigned votes = __ballot_sync(~0u, set);
            unsigned mask = 0;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) mask |= (votes >> (i * LANES) & 1) << i;
            if (lane == 0) shared.resets[stage] = mask;
        }
        end_copy_group();
    };
    const auto store = [&](int step) {
        if (!row_exists) return;
        const bool active = !RAGGED || row.active(step);
        const Offset token = row.token(sizes, step);
        h.store(&shared.h[(step + 1) % 2][0][block.unit0], token, active);
        saved.store(&shared.saved[step % 2][0][0][0], token, active);
        wide.store(&shared.wide[step % 2][0][0][0], token, active);
    };

    for (int step = 0; step < STAGES - 1; ++step) fetch(step);
    for (int step = 0; step <= sizes.time; ++step) {
        wait_for_copies<STAGES - 2>();
        // wx of this step is there, and what was stored last may be overwritten: the computing warps may go on.
        arrive_for_step(shared, step);
        wait_for_step(shared, step);
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
        shared.h[buffer][row][unit] = rounded<T>(exists ? call.s0[at] : 0.0f);
    }
    for (int i = threadIdx.x; i < int(sizeof(shared.x) / sizeof(unsigned)); i += THREADS)
        reinterpret_cast<unsigned*>(shared.x)[i] = 0;
    if constexpr (BLOCKS > 1) {
        if (threadIdx.x == 0) {
            shared.arrived[0].init(WARPS + HELPERS);
            shared.arrived[1].init(WARPS + HELPERS);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
#if __CUDA_ARCH__ >= 900
        cluster_barrier();
#endif
    } else {
        __syncthreads();
    }
    if (threadIdx.x < 32 * WARPS)
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
