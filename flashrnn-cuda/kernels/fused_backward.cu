// The backward pass of all time steps in one kernel: R transposed stays in registers, dg in shared memory.
//
// Grid as in fused_forward.cu: BLOCKS blocks, a cluster, for a head and ROWS rows of the batch; each has UNITS of its units, whose
// dh it sums over all gates and units of the head, and whose dg it hands to the others.
//
// Warps: 8 that compute and HELPERS that carry: they fetch what the steps need STAGES - 1 steps ahead, and store dg.
//
// A step: the product dh = R' dg, each computing warp for 16 units (m) and 8 rows (n) and one of SPLIT parts of k; the parts meet
// in shared memory. Meanwhile, or in a cluster while the last step's dg are on their way, the cell's derivative is taken, which
// needs no dh: Cell::backward is linear in d, so its values for unit vectors are a matrix, and what is left after the product is
// to multiply by it. For this each thread has a unit of a row, or two neighbouring ones.
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
constexpr int MINE = ROWS * UNITS > WARPS * 32 ? 2 : 1;  // neighbouring units whose derivative a thread takes
constexpr int LANES_OF_ROW = UNITS / MINE;

static_assert(UNITS == 16 || UNITS == 32 || UNITS == 64, "whole tiles, and whole rows in a warp");

struct Shared {
    T dg[2][8][DG_STRIDE];
    T apart[2][at_least_one(APART)][ROWS][IN_STRIDE];
    T in[STAGES][NARROW][ROWS][IN_STRIDE];
    float wide[STAGES][at_least_one(WIDE)][ROWS][SUM_STRIDE];
    float sums[SPLIT][8][SUM_STRIDE];
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

// What shared memory holds for a thread's units.
struct Mine {
    float of[MINE];
};

__device__ __forceinline__ Mine load(const T* from) {
    Mine v;
    if constexpr (MINE == 2) {
        const unsigned pair = *reinterpret_cast<const unsigned*>(from);
        v.of[0] = low(pair);
        v.of[MINE - 1] = high(pair);
    } else {
        v.of[0] = widen(*from);
    }
    return v;
}

__device__ __forceinline__ Mine load(const float* from) {
    Mine v;
    if constexpr (MINE == 2) {
        const float2 pair = *reinterpret_cast<const float2*>(from);
        v.of[0] = pair.x;
        v.of[MINE - 1] = pair.y;
    } else {
        v.of[0] = *from;
    }
    return v;
}

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

    // This thread's derivatives: of row b, units `first` and the next.
    const int b = threadIdx.x / LANES_OF_ROW, first = threadIdx.x % LANES_OF_ROW * MINE;
    const bool row_exists = b < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? b : 0));
    const int length = row_exists ? row.length : -1;
    const Offset state_stride = sizes.batch * sizes.units();
    const Offset state = Offset(block.row0 + b) * sizes.units() + block.place() + first;

    // The gradient of the states after a step: at a row's last step that of `last`.
    float carried[MINE][Cell::STATES] = {};
#pragma unroll
    for (int j = 0; j < MINE; ++j) {
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s)
            if (call.d_last && row_exists && first + j < block.units) carried[j][s] = call.d_last[s * state_stride + state + j];
    }
    const unsigned dg_of = shared_address(&shared.dg[0][lane % 8][part * STEPS_OF_K * 32 + lane / 8 * 8]);
    constexpr unsigned DG_BYTES = sizeof(shared.dg[0]);
#if __CUDA_ARCH__ >= 900
    const unsigned own_rank = BLOCKS == 1 ? 0 : block_in_cluster();
#endif

    // Of a step, what it needs to know before its product is there.
    float residuals[MINE][Cell::RESIDUALS], outside[MINE][Cell::STATES];
    bool clipped[MINE];  // h was: it has no gradient
    const auto active = [&](int round) { return !RAGGED || sizes.time - 1 - round < length; };
    const auto linearize = [&](int round) {
        if (!active(round)) return;
        const int stage = round % STAGES;
        const bool reset = RAGGED && call.resets && shared.resets[stage] >> b & 1;
        float before[MINE][Cell::STATES], gates[MINE][Cell::GATES];
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate) {
            const Mine v = Cell::WIDE_GATES >> gate & 1
                               ? load(&shared.wide[stage][WIDE_STATES + rank(Cell::WIDE_GATES, gate)][b][first])
                               : load(&shared.in[stage][GATES_IN + gate][b][first]);
#pragma unroll
            for (int j = 0; j < MINE; ++j) gates[j][gate] = v.of[j];
        }
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) {
            const Mine v = Cell::WIDE >> s & 1 ? load(&shared.wide[stage][rank(Cell::WIDE, s)][b][first])
                                               : load(&shared.in[stage][BEFORE_IN + s][b][first]);
            const Mine d = load(&shared.in[stage][D_IN + s][b][first]);  // 0 where none is given
#pragma unroll
            for (int j = 0; j < MINE; ++j) {
                before[j][s] = reset ? 0.0f : v.of[j];
                outside[j][s] = d.of[j];
            }
        }
#pragma unroll
        for (int j = 0; j < MINE; ++j) {
            Cell::linearize(before[j], gates[j], residuals[j]);
            if (CLIPS) {
                float next[Cell::STATES];
                Cell::forward(before[j], gates[j], next);
                clipped[j] = real::abs(next[0]) > call.forward_clip;
            }
        }
    };

    const auto multiply = [&](int round, float (&d)[2][4]) {
#pragma unroll
        for (int i = 0; i < STEPS_OF_K; ++i) {
            unsigned dg[4];
            load_matrices<false>(dg, dg_of + round % 2 * DG_BYTES + i * 32 * sizeof(T));
            mma(d[0], weights[i][0], dg[0], dg[1]);
            mma(d[1], weights[i][1], dg[2], dg[3]);
        }
    };
    // The parts of the product meet: the gradient that reaches this thread's h through R.
    const auto meet = [&](const float (&d)[2][4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            shared.sums[part][q * 2 + i % 2][tile * 16 + i / 2 * 8 + r] = d[0][i] + d[1][i];
        wait_for_sums();
        Mine sum = {};
#pragma unroll
        for (int i = 0; i < SPLIT; ++i) {
            const Mine v = load(&shared.sums[i][b % ROWS][first]);
#pragma unroll
            for (int j = 0; j < MINE; ++j) {
                sum.of[j] += v.of[j];
                if (CLIPS && i == SPLIT - 1)
                    sum.of[j] = call.cut_recurrent_grad ? 0.0f : real::clamp(sum.of[j], call.recurrent_grad_clip);
            }
        }
        return sum;
    };
    // Whether the state is zeroed between the step of this round and the one after.
    const auto reset_after = [&](int round) {
        return RAGGED && call.resets && shared.resets[round % STAGES] >> (8 + b) & 1;
    };

    for (int round = 0; round < sizes.time; ++round) {
        const unsigned now = round % 2, next_buffer = (round + 1) % 2;
        wait_for_round(shared, round);
        if (BLOCKS == 1 || round == 0) linearize(round);
        float d[2][4] = {};
        multiply(round, d);
        const bool reset = reset_after(round), last = RAGGED && sizes.time - 1 - round == length - 1;
        const Mine dh = meet(d);

        if (ROWS * UNITS % (WARPS * 32) == 0 || b < ROWS) {
            float d_gates[MINE][Cell::GATES] = {};
#pragma unroll
            for (int j = 0; j < MINE; ++j) {
                if (!active(round)) continue;
                float total[Cell::STATES];
#pragma unroll
                for (int s = 0; s < Cell::STATES; ++s) total[s] = outside[j][s] + (reset ? 0.0f : carried[j][s]);
                if (!(last || reset)) total[0] += dh.of[j];
                if (CLIPS && clipped[j]) total[0] = 0.0f;
                Cell::backward(residuals[j], total, carried[j], d_gates[j]);
            }
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate) {
                T* to = gate < Cell::RECURRENT ? &shared.dg[next_buffer][b][gate % Cell::RECURRENT * DEPTH + block.unit0 + first]
                                               : &shared.apart[now][gate % at_least_one(APART)][b][first];
                if (gate < Cell::RECURRENT && HEAD_DIM % UNITS != 0 && block.unit0 + first >= DEPTH) continue;
                float v[MINE];
#pragma unroll
                for (int j = 0; j < MINE; ++j)
                    v[j] = HEAD_DIM % UNITS == 0 || first + j < block.units ? d_gates[j][gate] : 0.0f;
                if constexpr (MINE == 2)
                    *reinterpret_cast<unsigned*>(to) = pack(v[0], v[MINE - 1]);
                else
                    *to = rounded<T>(v[0]);
            }
        }

        if constexpr (BLOCKS > 1) {
#if __CUDA_ARCH__ >= 900
            __syncwarp();
            // This warp's units and rows in 16-byte pieces, 8 units of a gate, each to all other blocks.
            constexpr int OF_GATE = 32 * MINE / 8, PIECES = OF_GATE * Cell::RECURRENT, ITEMS = PIECES * (BLOCKS - 1);
#pragma unroll
            for (int begin = 0; begin < ITEMS; begin += 32) {
                const int item = begin + lane, piece = item % PIECES;
                const int gate = piece / OF_GATE, place = warp * 32 * MINE + piece % OF_GATE * 8;
                const int row = place / UNITS, unit = block.unit0 + place % UNITS;
                if (item >= ITEMS || row >= ROWS || unit >= DEPTH) continue;
                const T* from = &shared.dg[next_buffer][row][gate * DEPTH + unit];
                const uint4 v = *reinterpret_cast<const uint4*>(from);
                const unsigned rank = (own_rank + 1 + item / PIECES) % BLOCKS;
                send(address_in(shared_address(from), rank), v, address_in(shared_address(&shared.arrived[next_buffer]), rank));
            }
            if (lane == 0) {
                // From each other block 16 bytes for 8 of its units, each row and gate.
                const int groups = DEPTH / 8 - (::min(DEPTH, block.unit0 + UNITS) - ::min(DEPTH, block.unit0)) / 8;
                if (warp == 0)
                    shared.arrived[next_buffer].arrive_and_expect(groups * ROWS * Cell::RECURRENT * 16);
                else
                    shared.arrived[next_buffer].arrive();
            }
            if (round + 1 < sizes.time) linearize(round + 1);
#endif
        }
    }

    // What reaches the state before the first step.
    wait_for_round(shared, sizes.time);
    float d[2][4] = {};
    multiply(sizes.time, d);
    const bool reset = reset_after(sizes.time);
    const Mine dh = meet(d);
#pragma unroll
    for (int j = 0; j < MINE; ++j) {
        if (!call.d_s0 || !row_exists || first + j >= block.units) continue;
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) {
            float total = carried[j][s];
            if (s == 0 && !(RAGGED && length == 0)) total += dh.of[j];
            call.d_s0[s * state_stride + state + j] = (Cell::CONSTANT >> s & 1) || reset ? 0.0f : total;
        }
    }
}

__device__ __forceinline__ void carry(const BackwardCall& call, const Block& block, Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int helper = threadIdx.x / 32 - WARPS, lane = threadIdx.x % 32, r = helping_row();
    const bool row_exists = r < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? r : 0));
    const Offset units = sizes.units(), tensor = sizes.tokens() * units, place = block.place();

    // Of the step, and of the step before it.
    const Walk walk(sizes, row, sizes.time - 1, -1), walk_before(sizes, row, sizes.time - 2, -1);
    Pieces<const T, Cell::GATES, ROWS * IN_STRIDE, IN_STRIDE> gates(
        block, walk, [&](int gate) { return gate_tensor(call.gates, sizes, gate, place); });
    Pieces<const T, Cell::STATES, ROWS * IN_STRIDE, IN_STRIDE> d(block, walk, [&](int s) {
        return Tensor<const T>{s < call.d_states_count ? call.d_states + s * tensor + place : nullptr, units};
    });
    Pieces<const T, Cell::STATES, ROWS * IN_STRIDE, IN_STRIDE> before(
        block, walk_before, [&](int s) { return Tensor<const T>{call.states + s * tensor + place, units}; });
    Pieces<const float, WIDE_GATES, ROWS * SUM_STRIDE, SUM_STRIDE> wide_gates(
        block, walk, [&](int which) { return Tensor<const float>{call.wide_gates + which * tensor + place, units}; });
    Pieces<const float, WIDE_STATES, ROWS * SUM_STRIDE, SUM_STRIDE> wide_before(
        block, walk_before, [&](int which) { return Tensor<const float>{call.wide_states + which * tensor + place, units}; });
    // Results.
    Pieces<T, Cell::RECURRENT, DEPTH, DG_STRIDE> recurrent(
        block, walk, [&](int gate) { return gate_tensor(call.d_gates, sizes, gate, place); });
    Pieces<T, APART, ROWS * IN_STRIDE, IN_STRIDE> apart(
        block, walk, [&](int which) { return gate_tensor(call.d_gates, sizes, Cell::RECURRENT + which, place); });

    // The state before the first step is f32: here it is rounded as those of the other steps are, but for the wide ones.
    const auto fetch_s0 = [&](int stage) {
        for (int i = threadIdx.x - WARPS * 32; i < Cell::STATES * ROWS * UNITS; i += HELPERS * 32) {
            const int s = i / (ROWS * UNITS), b = i / UNITS % ROWS, unit = i % UNITS;
            const bool given = call.s0 && b < block.rows && unit < block.units;
            const Offset at = (Offset(s) * sizes.batch + block.row0 + b) * units + place + unit;
            const float v = given ? call.s0[at] : 0.0f;
            shared.in[stage][BEFORE_IN + s][b][unit] = rounded<T>(v);
            if (Cell::WIDE >> s & 1) shared.wide[stage][rank(Cell::WIDE, s)][b][unit] = v;
        }
    };
    const auto fetch = [&](int round) {
        const int step = sizes.time - 1 - round, stage = round % STAGES;
        if (step == 0) fetch_s0(stage);
        if (step >= 0 && row_exists && (!RAGGED || row.active(step))) {
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
        if (RAGGED && call.resets && helper == 0 && step >= -1) {
            const int q = lane % LANES;
            const bool asks = row_exists && q < 2 && step + q >= 0;
            const unsigned votes = __ballot_sync(~0u, asks && row.reset(sizes, call.resets, step + q));
            unsigned mask = 0;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) mask |= (votes >> (i * LANES) & 1) << i | (votes >> (i * LANES + 1) & 1) << (8 + i);
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

    // Which rounds' inputs must be there at a round: its own, and in a cluster the next one's.
    constexpr int STEPS_AHEAD = BLOCKS > 1 ? 2 : 1;
    for (int round = 0; round < STAGES - 1; ++round) fetch(round);
    for (int round = 0; round <= sizes.time; ++round) {
        wait_for_copies<STAGES - 1 - STEPS_AHEAD>();
        if (BLOCKS > 1 && round > 0) {
            __syncwarp();
            if (lane == 0) shared.arrived[round % 2].arrive();
        }
        wait_for_round(shared, round);
        if (round > 0) store(round - 1);
        fetch(round + STAGES - 1);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) fused_backward(const __grid_constant__ BackwardCall call) {
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
