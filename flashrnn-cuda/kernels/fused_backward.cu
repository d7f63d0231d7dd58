// The backward pass of all time steps in one kernel: R transposed stays in registers, dg in shared memory.
//
// Grid as in fused_forward.cu: BLOCKS blocks, a cluster, for a head and 8 rows of the batch; each has UNITS of its units, whose
// dh it sums over all gates and units of the head, and whose dg it hands to the others.
//
// Warps: 8 that compute and HELPERS that carry: they fetch what the steps need STAGES - 1 steps ahead, and store dg.
//
// A step: the product dh = R' dg, each computing warp for 16 units (m) and 8 rows (n) and one of SPLIT parts of k; the parts meet
// in shared memory. Meanwhile the cell's derivative is taken, which needs no dh: Cell::backward is linear in d, so its values for
// unit vectors are a matrix, and what is left after the product is to multiply by it. Then each thread has 2 neighbouring units
// of one row, as pairs of PAIRS.
//
// Shared memory: dg [2][8][Gr depth] (a step reads one and writes the other), the parts of the sums [SPLIT][8][UNITS], and of
// each of STAGES steps the gates, the states before and the gradients given.
constexpr int WARPS = 8;  // that compute
#include "carry.cuh"

constexpr int THREADS = 32 * (WARPS + HELPERS);
constexpr int TILES = UNITS / 16;
constexpr int SPLIT = WARPS / TILES;
constexpr int DEPTH = (HEAD_DIM + 31) / 32 * 32;
constexpr int K = Cell::RECURRENT * DEPTH;
constexpr int STEPS_OF_K = (K / 32 + SPLIT - 1) / SPLIT;  // of 32, of one part
constexpr int DG_STRIDE = SPLIT * STEPS_OF_K * 32 + 8;
constexpr int SUM_STRIDE = UNITS + 4;
constexpr int IN_STRIDE = UNITS + 8;
constexpr int NARROW = Cell::GATES + 2 * Cell::STATES;
constexpr int WIDE_STATES = count(Cell::WIDE), WIDE_GATES = count(Cell::WIDE_GATES), WIDE = WIDE_STATES + WIDE_GATES;
constexpr int APART = Cell::GATES - Cell::RECURRENT;  // gates whose dg no product reads
constexpr int PAIRS = (UNITS / 8 + WARPS - 1) / WARPS;  // groups of 8 units a warp

static_assert(UNITS % 16 == 0 && WARPS % TILES == 0 && TILES <= WARPS, "16 units a tile");

struct Shared {
    T dg[2][ROWS][DG_STRIDE];
    T apart[2][at_least_one(APART)][ROWS][IN_STRIDE];
    T in[STAGES][NARROW][ROWS][IN_STRIDE];
    float wide[STAGES][at_least_one(WIDE)][ROWS][SUM_STRIDE];
    float sums[SPLIT][ROWS][SUM_STRIDE];
    unsigned resets[STAGES];  // bit b: row b's state is zeroed before this step; bit 8 + b: before the step after
    Barrier arrived[2];
};

static_assert(sizeof(Shared) <= SHARED_BYTES, "select.rs computes less");

// The tensors of `in`.
constexpr int GATES_IN = 0, BEFORE_IN = Cell::GATES, D_IN = Cell::GATES + Cell::STATES;

// After this, dg of the step after and the inputs of this one are there. Every warp of the block calls it.
__device__ __forceinline__ void wait_for_round(Shared& shared, int round) {
    if (BLOCKS == 1 || round == 0) {
        __syncthreads();
    } else {
#if __CUDA_ARCH__ >= 900
        shared.arrived[round % 2].wait((round - 1) / 2 % 2);
#endif
    }
}

__device__ __forceinline__ void wait_for_sums() { asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory"); }

// The cell's derivative at one unit and step: row s of each is that of a unit vector of d.
struct Derivative {
    float before[Cell::STATES][Cell::STATES], gates[Cell::STATES][Cell::GATES];
    bool clipped;

    __device__ __forceinline__ void take(const float (&s)[Cell::STATES], const float (&g)[Cell::GATES], float clip) {
#pragma unroll
        for (int k = 0; k < Cell::STATES; ++k) {
            if (Cell::CONSTANT >> k & 1) continue;
            float unit[Cell::STATES] = {};
            unit[k] = 1.0f;
            Cell::backward(s, g, unit, before[k], gates[k]);
        }
        clipped = false;
        if (clip != real::inf()) {
            float next[Cell::STATES];
            Cell::forward(s, g, next);
            clipped = real::abs(next[0]) > clip;
        }
    }

    __device__ __forceinline__ void apply(const float (&d)[Cell::STATES], float (&d_before)[Cell::STATES],
                                          float (&d_gates)[Cell::GATES]) const {
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) {
            d_before[s] = 0.0f;
#pragma unroll
            for (int k = 0; k < Cell::STATES; ++k)
                if (!(Cell::CONSTANT >> k & 1)) d_before[s] = fmaf(d[k], before[k][s], d_before[s]);
        }
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate) {
            d_gates[gate] = 0.0f;
#pragma unroll
            for (int k = 0; k < Cell::STATES; ++k)
                if (!(Cell::CONSTANT >> k & 1)) d_gates[gate] = fmaf(d[k], gates[k][gate], d_gates[gate]);
        }
    }
};

__device__ __forceinline__ void compute(const BackwardCall& call, const Block& block, Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
    const int tile = warp % TILES, part = warp / TILES;

    // R transposed: rows r and r + 8 of the tile, this part of k.
    unsigned weights[STEPS_OF_K][2][4];
#pragma unroll
    for (int i = 0; i < STEPS_OF_K; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int unit = block.unit0 + tile * 16 + half * 8 + r;
            const int k = (part * STEPS_OF_K + i) * 32;
            const bool exists = unit < HEAD_DIM && k < K;
            const T* row = call.r + (Offset(block.head) * HEAD_DIM + unit) * K + k + q * 2;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                weights[i][j][half] = exists ? *reinterpret_cast<const unsigned*>(row + j * 16) : 0u;
                weights[i][j][half + 2] = exists ? *reinterpret_cast<const unsigned*>(row + j * 16 + 8) : 0u;
            }
        }
    }

    // This thread's pairs: row r, units first(pair) and the next.
    const auto first = [&](int pair) { return (warp + pair * WARPS) * 8 + q * 2; };
    const bool row_exists = r < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? r : 0));
    const int length = row_exists ? row.length : -1;
    const Offset state_stride = sizes.batch * sizes.units();
    const auto state_at = [&](int pair, int j) {
        return Offset(block.row0 + r) * sizes.units() + Offset(block.head) * HEAD_DIM + block.unit0 + first(pair) + j;
    };
    const auto exists = [&](int pair, int j) { return row_exists && first(pair) + j < block.units; };

    float carried[PAIRS][2][Cell::STATES] = {};
    const unsigned dg_of = shared_address(&shared.dg[0][lane % 8][part * STEPS_OF_K * 32 + lane / 8 * 8]);
    constexpr unsigned DG_BYTES = sizeof(shared.dg[0]);
#if __CUDA_ARCH__ >= 900
    const unsigned own_rank = BLOCKS == 1 ? 0 : block_in_cluster();
#endif

    for (int round = 0; round <= sizes.time; ++round) {
        const int step = sizes.time - 1 - round;
        wait_for_round(shared, round);
        const unsigned now = round % 2, next_buffer = (round + 1) % 2, stage = round % STAGES;

        float d[2][4] = {};
#pragma unroll
        for (int i = 0; i < STEPS_OF_K; ++i) {
            unsigned dg[4];
            load_matrices<false>(dg, dg_of + now * DG_BYTES + i * 32 * sizeof(T));
            mma(d[0], weights[i][0], dg[0], dg[1]);
            mma(d[1], weights[i][1], dg[2], dg[3]);
        }

        const unsigned resets = call.resets ? shared.resets[stage] : 0;
        const bool active = step >= 0 && step < length, last = step == length - 1;
        const bool reset = resets >> r & 1, from_outside = last || (resets >> (8 + r) & 1);
        Derivative derivative[PAIRS][2];
        float outside[PAIRS][2][Cell::STATES];
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            if (first(pair) >= UNITS) continue;
            float before[2][Cell::STATES] = {}, gates[2][Cell::GATES] = {};
            const auto load = [&](int which, float& a, float& b) {
                const unsigned v = *reinterpret_cast<const unsigned*>(&shared.in[stage][which][r][first(pair)]);
                a = low(v);
                b = high(v);
            };
            const auto load_wide = [&](int which, float& a, float& b) {
                const float2 v = *reinterpret_cast<const float2*>(&shared.wide[stage][which][r][first(pair)]);
                a = v.x;
                b = v.y;
            };
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate) {
                if (Cell::WIDE_GATES >> gate & 1)
                    load_wide(WIDE_STATES + rank(Cell::WIDE_GATES, gate), gates[0][gate], gates[1][gate]);
                else
                    load(GATES_IN + gate, gates[0][gate], gates[1][gate]);
            }
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s) {
                if (Cell::WIDE >> s & 1)
                    load_wide(rank(Cell::WIDE, s), before[0][s], before[1][s]);
                else
                    load(BEFORE_IN + s, before[0][s], before[1][s]);
            }
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s) {
                float given[2] = {};
                if (s < call.d_states_count) load(D_IN + s, given[0], given[1]);
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    if (step == 0)
                        before[j][s] = call.s0 && exists(pair, j) ? call.s0[s * state_stride + state_at(pair, j)] : 0.0f;
                    if (reset) before[j][s] = 0.0f;
                    outside[pair][j][s] = active ? given[j] : 0.0f;
                    if (last && call.d_last && exists(pair, j))
                        outside[pair][j][s] += call.d_last[s * state_stride + state_at(pair, j)];
                }
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) derivative[pair][j].take(before[j], gates[j], call.forward_clip);
        }

#pragma unroll
        for (int i = 0; i < 4; ++i)
            shared.sums[part][q * 2 + i % 2][tile * 16 + i / 2 * 8 + r] = d[0][i] + d[1][i];
        wait_for_sums();

#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
            if (first(pair) >= UNITS) continue;
            float sum[2] = {};
#pragma unroll
            for (int i = 0; i < SPLIT; ++i) {
                const float2 v = *reinterpret_cast<const float2*>(&shared.sums[i][r][first(pair)]);
                sum[0] += v.x;
                sum[1] += v.y;
            }
            float d_gates[2][Cell::GATES] = {};
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                float total[Cell::STATES];
#pragma unroll
                for (int s = 0; s < Cell::STATES; ++s)
                    total[s] = outside[pair][j][s] + (from_outside ? 0.0f : carried[pair][j][s]);
                if (!from_outside && !call.cut_recurrent_grad) {
                    if (call.recurrent_grad_clip != real::inf()) sum[j] = real::clamp(sum[j], call.recurrent_grad_clip);
                    total[0] += sum[j];
                }
                if (step < 0) {
                    if (call.d_s0 && exists(pair, j)) {
#pragma unroll
                        for (int s = 0; s < Cell::STATES; ++s)
                            call.d_s0[s * state_stride + state_at(pair, j)] =
                                (Cell::CONSTANT >> s & 1) || (resets >> (8 + r) & 1) ? 0.0f : total[s];
                    }
                } else if (active) {
                    if (derivative[pair][j].clipped) total[0] = 0.0f;
                    derivative[pair][j].apply(total, carried[pair][j], d_gates[j]);
                }
            }
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate) {
                const unsigned v = pack(exists(pair, 0) ? d_gates[0][gate] : 0.0f, exists(pair, 1) ? d_gates[1][gate] : 0.0f);
                T* to = gate < Cell::RECURRENT ? &shared.dg[next_buffer][r][gate * DEPTH + block.unit0 + first(pair)]
                                               : &shared.apart[now][gate - Cell::RECURRENT][r][first(pair)];
                if (gate >= Cell::RECURRENT || block.unit0 + first(pair) < DEPTH) *reinterpret_cast<unsigned*>(to) = v;
            }
        }

        if constexpr (BLOCKS > 1) {
#if __CUDA_ARCH__ >= 900
            __syncwarp();
            const int row = lane % 8;
#pragma unroll
            for (int pair = 0; pair < PAIRS; ++pair) {
                const int unit = block.unit0 + (warp + pair * WARPS) * 8;
                if (unit - block.unit0 >= UNITS || unit >= DEPTH) continue;
#pragma unroll
                for (int gate = 0; gate < Cell::RECURRENT; ++gate) {
                    const T* piece = &shared.dg[next_buffer][row][gate * DEPTH + unit];
                    const uint4 v = *reinterpret_cast<const uint4*>(piece);
                    const unsigned there = shared_address(piece), barrier = shared_address(&shared.arrived[next_buffer]);
#pragma unroll
                    for (int begin = 0; begin < BLOCKS; begin += 4) {
                        const unsigned rank = begin + lane / 8;
                        if (rank < BLOCKS && rank != own_rank) send(address_in(there, rank), v, address_in(barrier, rank));
                    }
                }
            }
            if (lane == 0) {
                // From each other block 16 bytes for 8 of its units, each row and gate.
                const int groups = DEPTH / 8 - (::min(DEPTH, block.unit0 + UNITS) - ::min(DEPTH, block.unit0)) / 8;
                if (warp == 0)
                    shared.arrived[next_buffer].arrive_and_expect(groups * ROWS * Cell::RECURRENT * 16);
                else
                    shared.arrived[next_buffer].arrive();
            }
#endif
        }
    }
    wait_for_round(shared, sizes.time + 1);
}

__device__ __forceinline__ void carry(const BackwardCall& call, const Block& block, Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int helper = threadIdx.x / 32 - WARPS, lane = threadIdx.x % 32, r = lane / 4;
    const bool row_exists = r < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? r : 0));
    const Offset units = sizes.units(), tensor = sizes.tokens() * units, place = block.place();

    // Of the step, and of the step before it.
    const Pieces<const T, Cell::GATES, ROWS * IN_STRIDE, IN_STRIDE> gates(
        block, [&](int gate) { return gate_tensor(call.gates, sizes, gate, place); });
    const Pieces<const T, Cell::STATES, ROWS * IN_STRIDE, IN_STRIDE> d(block, [&](int s) {
        return Tensor<const T>{s < call.d_states_count ? call.d_states + s * tensor + place : nullptr, units};
    });
    const Pieces<const T, Cell::STATES, ROWS * IN_STRIDE, IN_STRIDE> before(
        block, [&](int s) { return Tensor<const T>{call.states + s * tensor + place, units}; });
    const Pieces<const float, WIDE_GATES, ROWS * SUM_STRIDE, SUM_STRIDE> wide_gates(
        block, [&](int which) { return Tensor<const float>{call.wide_gates + which * tensor + place, units}; });
    const Pieces<const float, WIDE_STATES, ROWS * SUM_STRIDE, SUM_STRIDE> wide_before(
        block, [&](int which) { return Tensor<const float>{call.wide_states + which * tensor + place, units}; });
    // Results.
    const Pieces<T, Cell::RECURRENT, DEPTH, DG_STRIDE> recurrent(
        block, [&](int gate) { return gate_tensor(call.d_gates, sizes, gate, place); });
    const Pieces<T, APART, ROWS * IN_STRIDE, IN_STRIDE> apart(
        block, [&](int which) { return gate_tensor(call.d_gates, sizes, Cell::RECURRENT + which, place); });

    const auto fetch = [&](int round) {
        const int step = sizes.time - 1 - round, stage = round % STAGES;
        if (step >= 0 && row_exists && row.active(step)) {
            const Offset token = row.token(sizes, step);
            gates.fetch(&shared.in[stage][GATES_IN][0][0], token);
            d.fetch(&shared.in[stage][D_IN][0][0], token);
            wide_gates.fetch(&shared.wide[stage][WIDE_STATES == WIDE ? 0 : WIDE_STATES][0][0], token);
            if (step > 0) {
                const Offset previous = row.token(sizes, step - 1);
                before.fetch(&shared.in[stage][BEFORE_IN][0][0], previous);
                wide_before.fetch(&shared.wide[stage][0][0][0], previous);
            }
        }
        if (call.resets && helper == 0 && step >= -1) {
            const bool asks = row_exists && lane % 4 < 2 && step + lane % 4 >= 0;
            const unsigned votes = __ballot_sync(~0u, asks && row.reset(sizes, call.resets, step + lane % 4));
            unsigned mask = 0;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) mask |= (votes >> (i * 4) & 1) << i | (votes >> (i * 4 + 1) & 1) << (8 + i);
            if (lane == 0) shared.resets[stage] = mask;
        }
        end_copy_group();
    };
    const auto store = [&](int round) {
        const int step = sizes.time - 1 - round;
        if (step < 0 || !row_exists) return;
        const Offset token = row.token(sizes, step);
        recurrent.store(&shared.dg[(round + 1) % 2][0][block.unit0], token, true);
        apart.store(&shared.apart[round % 2][0][0][0], token, true);
    };

    for (int round = 0; round < STAGES - 1; ++round) fetch(round);
    for (int round = 0; round <= sizes.time + 1; ++round) {
        wait_for_copies<STAGES - 2>();
        if (BLOCKS > 1 && round > 0) {
            __syncwarp();
            if (lane == 0) shared.arrived[round % 2].arrive();
        }
        wait_for_round(shared, round);
        if (round > 0) store(round - 1);
        fetch(round + STAGES - 1);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) fused_backward(const __grid_constant__ BackwardCall call) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const Block block(call.sizes);
    // Zeros where no row, unit or k is, and for dg after the last step.
    for (int i = threadIdx.x; i < int(sizeof(Shared) / 4); i += THREADS) reinterpret_cast<unsigned*>(memory)[i] = 0;
    __syncthreads();
    if constexpr (BLOCKS > 1) {
        if (threadIdx.x == 0) {
            shared.arrived[0].init(WARPS + HELPERS);
            shared.arrived[1].init(WARPS + HELPERS);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
#if __CUDA_ARCH__ >= 900
        cluster_barrier();
#endif
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
