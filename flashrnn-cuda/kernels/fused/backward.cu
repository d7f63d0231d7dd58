// The backward pass of all time steps in one kernel: R transposed stays in registers, what its
// products give in shared memory.
//
// Grid as in fused_forward.cu: BLOCKS blocks, a cluster, for a head and ROWS rows of the batch;
// each has UNITS of its units. It computes dg of its units, multiplies by its columns of R
// transposed, and hands every block the part of dh of that block's units.
//
// Warps: 8 that compute and IO_WARPS that carry: they fetch what the steps need STAGES - 1 steps
// ahead, and store dg.
//
// A step: dh, the sum of PARTS parts; the cell's derivative; dg to shared memory; the product,
// tiles of 16 of the head's units (m), the rows (n) and k over the gates of the block's units: a
// warp has one tile or more, or a part of k of one. The cell's derivative is prepared while the
// parts are on their way. For all this but the product a thread has one unit of a row, or a few.
//
// Shared memory: dg [2][ROWS][K], the parts of dh [2][PARTS][UNITS][ROWS], and of each of STAGES
// steps the gates, the states before and the gradients given.
constexpr int WARPS = COMPUTE_WARPS;
#if TENSOR_CORES
#include "fused/tensor_cores.cuh"
#else
#include "fused/multiply_add.cuh"
#endif

constexpr int COMPUTING = 32 * WARPS, THREADS = COMPUTING + 32 * IO_WARPS;
constexpr int OF_BLOCK = UNITS / 16, TILES = BLOCKS * OF_BLOCK, GROUPS = WARPS / SPLIT_K;
constexpr int PARTS = BLOCKS * SPLIT_K;
constexpr int STEPS_OF_K = (Cell::RECURRENT * UNITS + 32 * SPLIT_K - 1) / (32 * SPLIT_K);  // of 32, of one part
constexpr int K = SPLIT_K * STEPS_OF_K * 32;
constexpr int DG_STRIDE = K + 8;
constexpr int WIDE_STRIDE = UNITS + 4;
constexpr int IN_STRIDE = UNITS + 8;
constexpr int NARROW = Cell::GATES + 2 * Cell::STATES;
constexpr bool KEEPS_WIDE = sizeof(T) < sizeof(float);
constexpr int WIDE_STATES = KEEPS_WIDE ? count(Cell::WIDE) : 0, WIDE_GATES = KEEPS_WIDE ? count(Cell::WIDE_GATES) : 0;
constexpr int WIDE = WIDE_STATES + WIDE_GATES;
constexpr int APART = Cell::GATES - Cell::RECURRENT;  // gates whose dg no product reads
constexpr int MINE = (ROWS * UNITS + COMPUTING - 1) / COMPUTING;  // units of a thread

static_assert(UNITS == 16 || UNITS == 32 || UNITS == 64, "whole tiles");
static_assert(COMPUTING % ROWS == 0, "a thread's units have the same row");
static_assert(GROUPS * TILES_PER_WARP >= TILES, "select.rs gives the warps all tiles");

struct Shared {
    T dg[2][ROWS][DG_STRIDE];
    T apart[2][at_least_one(APART)][ROWS][IN_STRIDE];
    T in[STAGES][NARROW][ROWS][IN_STRIDE];
    float wide[STAGES][at_least_one(WIDE)][ROWS][WIDE_STRIDE];
    alignas(16) float parts[2][PARTS][UNITS][ROWS];
    unsigned resets[STAGES];  // bit b: row b's state is zeroed before this step; bit 8 + b: before the step after
    Barrier arrived[2];       // of parts[0] and parts[1]: this block's warps, and the bytes from the others
};

static_assert(sizeof(Shared) <= SHARED_BYTES, "spread.rs computes less");

// The tensors of `in`.
constexpr int GATES_IN = 0, BEFORE_IN = Cell::GATES, D_IN = Cell::GATES + Cell::STATES;

// Interleaved, the gates of a step lie there too: [ROWS][IN_STRIDE].
__device__ __forceinline__ AllGates* interleaved_gates(Shared& shared, int stage) {
    return reinterpret_cast<AllGates*>(&shared.in[stage][GATES_IN][0][0]);
}

// Where dg of a gate, row and unit of the block lies.
__device__ __forceinline__ T& dg_of(Shared& shared, int round, int gate, int row, int unit) {
    const unsigned now = unsigned(round) % 2;
    return gate < Cell::RECURRENT ? shared.dg[now][row][gate % Cell::RECURRENT * UNITS + unit]
                                  : shared.apart[now][::max(gate - Cell::RECURRENT, 0)][row][unit];
}

// After this, all parts of this round's dh are there, and the inputs of this round and the next.
// Every warp of the block calls it.
__device__ __forceinline__ void wait_for_round(Shared& shared, unsigned round) {
    delay();
    if constexpr (BLOCKS == 1)
        __syncthreads();
#if __CUDA_ARCH__ >= 900
    else
        shared.arrived[round % 2].wait(round / 2 % 2);
#endif
    if (BLOCK_BARRIERS) __syncthreads();
    delay();
}

// A warp has done its part for round `round`: what it wrote before is there for those who wait. In
// a cluster every warp of the block arrives once for each round.
__device__ __forceinline__ void arrive_for_round(Shared& shared, unsigned round) {
    delay();
    if (BLOCKS == 1) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) shared.arrived[round % 2].arrive();
}

// The tensors that a step reads, from the block's first unit: gates, the gradients given, and the
// states.
__device__ __forceinline__ Tensor<const T> gate_in(const BackwardCall& call, const Block& block, int gate) {
    return gate_tensor(call.gates, call.sizes, gate, block.place());
}
__device__ __forceinline__ Tensor<const T> d_in(const BackwardCall& call, const Block& block, int s) {
    const Offset units = call.sizes.units(), at = s * call.sizes.tokens() * units + block.place();
    return {s < call.d_states_count ? call.d_states + at : nullptr, units};
}
__device__ __forceinline__ Tensor<const T> state_in(const BackwardCall& call, const Block& block, int s) {
    const Offset units = call.sizes.units();
    return {call.states + s * call.sizes.tokens() * units + block.place(), units};
}

__device__ __forceinline__ void compute(const BackwardCall& call, const Block& block, Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
    const int part = warp % SPLIT_K;
#if __CUDA_ARCH__ >= 900
    const unsigned own_rank = BLOCKS == 1 ? 0 : block_in_cluster();
#else
    const unsigned own_rank = 0;
#endif

    // R transposed, for this part of k.
    BackwardProduct<TILES_PER_WARP, STEPS_OF_K> product;
    const auto tile_of = [&](int i) { return warp / SPLIT_K + i * GROUPS; };
    const auto weight = [&](int i, int unit_of_tile, int k) -> const T* {
        const int unit = tile_of(i) * 16 + unit_of_tile, gate = k / UNITS, from = block.unit0 + k % UNITS;
        const bool exists = unit < HEAD_DIM && gate < Cell::RECURRENT && from < DEPTH;
        return exists ? call.r + ((Offset(block.head) * HEAD_DIM + unit) * Cell::RECURRENT + gate) * DEPTH + from : nullptr;
    };
    product.load(weight, part * STEPS_OF_K * 32);

    // This thread's units of row b: `unit_of(j)`, where `has(j)`.
    const int b = threadIdx.x % ROWS;
    const auto unit_of = [&](int j) { return int(threadIdx.x + j * COMPUTING) / ROWS; };
    const auto has = [&](int j) { return ROWS * UNITS % COMPUTING == 0 || unit_of(j) < UNITS; };
    const bool row_exists = b < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? b : 0));
    const int length = row_exists ? row.length : -1;
    const Offset state_stride = sizes.batch * sizes.units();
    const Offset state = Offset(block.row0 + b) * sizes.units() + block.place();

    // The gradient of the states after a step: at a row's last step that of `last`.
    float carried[MINE][Cell::STATES] = {};
#pragma unroll
    for (int j = 0; j < MINE; ++j) {
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s)
            if (call.d_last && row_exists && unit_of(j) < block.units)
                carried[j][s] = call.d_last[s * state_stride + state + unit_of(j)];
    }

    // Of a step, what it needs to know before its dh is there.
    float residuals[MINE][Cell::RESIDUALS], outside[MINE][Cell::STATES];
    bool clipped[MINE];  // h was: it has no gradient
    const Shifts gate_shifts(INTERLEAVED ? 0 : Cell::GATES, [&](int gate) { return gate_in(call, block, gate); });
    const Shifts d_shifts(Cell::STATES, [&](int s) { return d_in(call, block, s); });
    const Shifts state_shifts(Cell::STATES, [&](int s) { return state_in(call, block, s); });
    const TokenBit token_bit(sizes, row.index);
    const auto active = [&](int round) { return !RAGGED || sizes.time - 1 - round < length; };
    const auto linearize = [&](int round) {
        if (!active(round)) return;
        const int stage = unsigned(round) % STAGES;
        const bool reset = RAGGED && call.resets && shared.resets[stage] >> b & 1;
        const int step = sizes.time - 1 - round;
        const auto bit = [&](int step) { return token_bit.at(sizes, row.index, row.length, step); };
        const unsigned of_gates = gate_shifts.at(bit(step)), of_d = d_shifts.at(bit(step));
        // The state before the first step is not copied but computed.
        const unsigned of_before = step > 0 ? state_shifts.at(bit(step - 1)) : 0;
#pragma unroll
        for (int j = 0; j < MINE; ++j) {
            if (!has(j)) continue;
            const int unit = unit_of(j);
            float before[Cell::STATES], gates[Cell::GATES];
            AllGates all;
            if constexpr (INTERLEAVED) all = interleaved_gates(shared, stage)[b * IN_STRIDE + unit];
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate)
                gates[gate] = kept_wide(Cell::WIDE_GATES, gate)
                                  ? shared.wide[stage][WIDE_STATES + rank(Cell::WIDE_GATES, gate)][b][unit]
                              : INTERLEAVED ? widen(all.of[gate % TOGETHER_GATES])
                                            : widen(shared.in[stage][GATES_IN + gate][b][unit + (of_gates >> gate & 1)]);
#pragma unroll
            for (int s = 0; s < Cell::STATES; ++s) {
                before[s] = kept_wide(Cell::WIDE, s) ? shared.wide[stage][rank(Cell::WIDE, s)][b][unit]
                                                : widen(shared.in[stage][BEFORE_IN + s][b][unit + (of_before >> s & 1)]);
                if (reset) before[s] = 0.0f;
                outside[j][s] = widen(shared.in[stage][D_IN + s][b][unit + (of_d >> s & 1)]);  // 0 where none is given
            }
            Cell::linearize(before, gates, residuals[j]);
            if (CLIPS) {
                float next[Cell::STATES];
                Cell::forward(before, gates, next);
                clipped[j] = real::abs(next[0]) > call.forward_clip;
            }
        }
    };

    // What reaches h through R, of this thread's unit j.
    const auto sum_of_parts = [&](int round, int j) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < PARTS; ++i) sum += shared.parts[unsigned(round) % 2][i][unit_of(j)][b];
        if (CLIPS) sum = call.cut_recurrent_grad ? 0.0f : real::clamp(sum, call.recurrent_grad_clip);
        return sum;
    };
    // Whether the state is zeroed between the step of this round and the one after.
    const auto reset_after = [&](int round) {
        return RAGGED && call.resets && shared.resets[round % STAGES] >> (8 + b) & 1;
    };

    // Hands rows of a unit of tile i to its block: those of unit r, or r + 8 for `half` 1 and for
    // lanes that have no rows of their own.
    const int own_half = ROWS == 4 ? q / 2 : 0, own_row = q * 2 % ROWS;
    unsigned parts_of[TILES_PER_WARP], arrived_of[TILES_PER_WARP];
    constexpr unsigned PARTS_BYTES = sizeof(shared.parts[0]), HALF_BYTES = 8 * sizeof(shared.parts[0][0][0]);
#pragma unroll
    for (int i = 0; i < TILES_PER_WARP; ++i) {
        const int tile = ::min(tile_of(i), TILES - 1);
        parts_of[i] = shared_address(
            &shared.parts[0][own_rank * SPLIT_K + part][tile % OF_BLOCK * 16 + own_half * 8 + r][own_row]);
        arrived_of[i] = shared_address(&shared.arrived[0]);
#if __CUDA_ARCH__ >= 900
        if (BLOCKS > 1) {
            parts_of[i] = address_in(parts_of[i], tile / OF_BLOCK);
            arrived_of[i] = address_in(arrived_of[i], tile / OF_BLOCK);
        }
#endif
    }
    const auto hand_over = [&](int i, int half, unsigned round, float2 v) {
        if (GROUPS * TILES_PER_WARP > TILES && tile_of(i) >= TILES) return;
        const unsigned to = parts_of[i] + round % 2 * PARTS_BYTES + half * HALF_BYTES;
        if (BLOCKS == 1)
            store_shared(to, v);
#if __CUDA_ARCH__ >= 900
        else
            send(to, v, arrived_of[i] + round % 2 * sizeof(Barrier));
#endif
    };

    // Where rows begin in the middle of a word each thread stores its own dg, which costs fewer
    // instructions than to put words together from shared memory.
    const auto store_dg = [&](int round) {
        const Offset token = row.token(sizes, sizes.time - 1 - round);
#pragma unroll
        for (int j = 0; j < MINE; ++j) {
            if (!has(j) || !row_exists || unit_of(j) >= block.units) continue;
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate)
                call.d_gates.at(sizes, token, gate, block.place() + unit_of(j)) = dg_of(shared, round, gate, b, unit_of(j));
        }
    };

    arrive_for_round(shared, 0);
    for (int round = 0; round < sizes.time; ++round) {
        const unsigned now = unsigned(round) % 2;
        wait_for_round(shared, round);
#if __CUDA_ARCH__ >= 900
        // From all blocks, this one too.
        if (BLOCKS > 1 && threadIdx.x == 0) shared.arrived[1 - now].expect(PARTS_BYTES);
#endif
        if (round == 0) linearize(round);
        const bool reset = reset_after(round), last = RAGGED && sizes.time - 1 - round == length - 1;
#pragma unroll
        for (int j = 0; j < MINE; ++j) {
            if (!has(j)) continue;
            const int unit = unit_of(j);
            const float dh = sum_of_parts(round, j);
            float d_gates[Cell::GATES] = {};
            if (active(round)) {
                float total[Cell::STATES];
#pragma unroll
                for (int s = 0; s < Cell::STATES; ++s) total[s] = outside[j][s] + (reset ? 0.0f : carried[j][s]);
                if (!(last || reset)) total[0] += dh;
                if (CLIPS && clipped[j]) total[0] = 0.0f;
                Cell::backward(residuals[j], total, carried[j], d_gates);
            }
#pragma unroll
            for (int gate = 0; gate < Cell::GATES; ++gate) {
                dg_of(shared, round, gate, b, unit) = rounded<T>(HEAD_DIM % UNITS == 0 || unit < block.units ? d_gates[gate] : 0.0f);
            }
        }
        delay();
        named_barrier(COMPUTING);  // all dg of the block are there

        float2 parts[TILES_PER_WARP][ROWS / 4];
        product.run(shared.dg[now][0], DG_STRIDE, parts);
        // Beside the tensor cores, or in a cluster while the parts are on their way; after the last
        // round for nothing.
        if (BLOCKS == 1) linearize(round + 1);
#pragma unroll
        for (int i = 0; i < TILES_PER_WARP; ++i) {
#pragma unroll
            for (int half = 0; half < ROWS / 4; ++half) hand_over(i, half, round + 1, parts[i][half]);
        }
        arrive_for_round(shared, round + 1);
        if constexpr (SHIFTED) store_dg(round);
        if (BLOCKS > 1) linearize(round + 1);
    }

    // What reaches the state before the first step.
    wait_for_round(shared, sizes.time);
    const bool reset = reset_after(sizes.time);
#pragma unroll
    for (int j = 0; j < MINE; ++j) {
        if (!call.d_s0 || !row_exists || unit_of(j) >= block.units) continue;
        const float dh = sum_of_parts(sizes.time, j);
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) {
            float total = carried[j][s];
            if (s == 0 && !(RAGGED && length == 0)) total += dh;
            call.d_s0[s * state_stride + state + unit_of(j)] = (Cell::CONSTANT >> s & 1) || reset ? 0.0f : total;
        }
    }
}

__device__ __forceinline__ void carry(const BackwardCall& call, const Block& block, Shared& shared) {
    const Sizes& sizes = call.sizes;
    const int r = carrying_thread() / LANES;
    const bool row_exists = r < block.rows;
    const Row row(sizes, call.lengths, block.row0 + (row_exists ? r : 0));
    const Offset units = sizes.units(), tensor = sizes.tokens() * units, place = block.place();

    // Of the step, and of the step before it.
    const Walk walk(sizes, row, sizes.time - 1, -1), walk_before(sizes, row, sizes.time - 2, -1);
    Pieces<const T, INTERLEAVED ? 0 : Cell::GATES, ROWS * IN_STRIDE, IN_STRIDE> gates(
        block, walk, [&](int gate) { return gate_in(call, block, gate); });
    Pieces<const AllGates, INTERLEAVED, 0, IN_STRIDE> all_gates(
        block, walk, [&](int) { return ::all_gates<const AllGates>(call.gates, sizes, place); });
    Pieces<const T, Cell::STATES, ROWS * IN_STRIDE, IN_STRIDE> d(block, walk, [&](int s) { return d_in(call, block, s); });
    Pieces<const T, Cell::STATES, ROWS * IN_STRIDE, IN_STRIDE> before(
        block, walk_before, [&](int s) { return state_in(call, block, s); });
    Pieces<const float, WIDE_GATES, ROWS * WIDE_STRIDE, WIDE_STRIDE> wide_gates(
        block, walk, [&](int which) { return Tensor<const float>{call.wide_gates + which * tensor + place, units}; });
    Pieces<const float, WIDE_STATES, ROWS * WIDE_STRIDE, WIDE_STRIDE> wide_before(
        block, walk_before, [&](int which) { return Tensor<const float>{call.wide_states + which * tensor + place, units}; });
    // Results, unless the computing warps store them.
    Pieces<T, SHIFTED ? 0 : Cell::RECURRENT, UNITS, DG_STRIDE> recurrent(
        block, walk, [&](int gate) { return gate_tensor(call.d_gates, sizes, gate, place); });
    Pieces<T, SHIFTED ? 0 : APART, ROWS * IN_STRIDE, IN_STRIDE> apart(
        block, walk, [&](int which) { return gate_tensor(call.d_gates, sizes, Cell::RECURRENT + which, place); });

    // The state before the first step is f32: here it is rounded as those of the other steps are,
    // but for the wide ones.
    const auto fetch_s0 = [&](int stage) {
        for (int i = carrying_thread(); i < Cell::STATES * ROWS * UNITS; i += IO_WARPS * 32) {
            const int s = i / (ROWS * UNITS), b = i / UNITS % ROWS, unit = i % UNITS;
            const bool given = call.s0 && b < block.rows && unit < block.units;
            const Offset at = (Offset(s) * sizes.batch + block.row0 + b) * units + place + unit;
            const float v = given ? call.s0[at] : 0.0f;
            shared.in[stage][BEFORE_IN + s][b][unit] = saturated<T>(v);
            if (kept_wide(Cell::WIDE, s)) shared.wide[stage][rank(Cell::WIDE, s)][b][unit] = v;
        }
    };
    // The first carrying warp asks for the rows' resets, a lane a row: 8 lanes of this step's, 8 of
    // the step after.
    const Row asked(sizes, call.lengths, block.row0 + ::min(carrying_thread() % 8, block.rows - 1));
    const SharedAddresses at(&shared);
    const auto fetch = [&](int round) {
        const int step = sizes.time - 1 - round, stage = round % STAGES;
        if (step == 0) fetch_s0(stage);
        if (step >= 0 && row_exists && (!RAGGED || row.active(step))) {
            const Offset token = row.token(sizes, step);
            gates.fetch(at(&shared.in[stage][GATES_IN][0][0]), token);
            all_gates.fetch(at(interleaved_gates(shared, stage)), token);
            d.fetch(at(&shared.in[stage][D_IN][0][0]), token);
            wide_gates.fetch(at(&shared.wide[stage][WIDE_STATES == WIDE ? 0 : WIDE_STATES][0][0]), token);
            if (step > 0) {
                const Offset previous = row.token(sizes, step - 1);
                before.fetch(at(&shared.in[stage][BEFORE_IN][0][0]), previous);
                wide_before.fetch(at(&shared.wide[stage][0][0][0]), previous);
            }
        }
        if (RAGGED && call.resets && carrying_thread() < 32 && step >= -1) {
            const int asked_step = step + carrying_thread() / 8;
            const bool asks = carrying_thread() < 16 && carrying_thread() % 8 < block.rows && asked_step >= 0;
            const unsigned mask = __ballot_sync(~0u, asks && asked.reset(sizes, call.resets, asked_step));
            if (carrying_thread() == 0) shared.resets[stage] = mask;
        }
        end_copy_group();
    };
    const auto store = [&](int round) {
        const int step = sizes.time - 1 - round;
        if (step < 0 || !row_exists) return;
        const Offset token = row.token(sizes, step);
        recurrent.store(at(&shared.dg[round % 2][0][0]), token, true);
        apart.store(at(&shared.apart[round % 2][0][0][0]), token, true);
    };

    for (int round = 0; round < STAGES - 1; ++round) fetch(round);
    for (int round = 0; round <= sizes.time; ++round) {
        wait_for_copies<STAGES - 3>();  // all but this round's and the next one's
        arrive_for_round(shared, round);
        wait_for_round(shared, round);
        if (round > 0) store(round - 1);
        fetch(round + STAGES - 1);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) fused_backward(const __grid_constant__ BackwardCall call) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const Block block(call.sizes);
    // Zeros where no row, unit or k is, and for the first step's dh.
    for (int i = threadIdx.x; i < int(sizeof(Shared) / 4); i += THREADS) reinterpret_cast<unsigned*>(memory)[i] = 0;
    __syncthreads();
    if constexpr (BLOCKS > 1) {
        if (threadIdx.x == 0) {
            shared.arrived[0].init(WARPS + IO_WARPS);
            shared.arrived[1].init(WARPS + IO_WARPS);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
#if __CUDA_ARCH__ >= 900
        cluster_barrier();
#endif
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
