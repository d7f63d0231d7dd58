// The exchange of a group through L2, in words that carry the number of their step.
//
// A word has 16 bytes: six values of one batch row, and twice a stamp. Each half, 8 bytes, is
// written by one relaxed store and read by relaxed loads of the same size and address, so a half
// whose stamp is that of the step has the values of that step (PTX ISA, "Memory Consistency
// Model": such accesses are morally strong and single-copy atomic). No fence is needed:
//
// - A reader accepts only the stamp that it waits for. There are two buffers, for odd and even
//   exchanges, and an exchange's stamp differs from that of the one before it in the same buffer.
// - A writer overwrites a word two exchanges later. By then its block has received a word of the
//   exchange in between from every reader's block, and a block sends only after its own threads
//   have received all words of the exchange before.
#pragma once
#include "delay.cuh"
#include "grid/block.cuh"

using Word = uint4;
constexpr int WORD_VALUES = 6;

// Returns a word of three pairs of values.
__device__ __forceinline__ Word make_word(const unsigned (&pairs)[3], unsigned stamp) {
    return {pairs[0], __byte_perm(pairs[2], stamp, 0x5410), pairs[1],
            __byte_perm(pairs[2], stamp, 0x5432)};
}

// Returns pair i of a word.
__device__ __forceinline__ unsigned pair_of(const Word& word, int i) {
    return i == 0 ? word.x : i == 1 ? word.z : __byte_perm(word.y, word.w, 0x5410);
}

__device__ __forceinline__ bool has_stamp(const Word& word, unsigned stamp) {
    return word.y >> 16 == stamp && word.w >> 16 == stamp;
}

__device__ __forceinline__ void store_word(Word* to, const Word& word) {
    const unsigned long long halves[2] = {word.x | (unsigned long long)word.y << 32,
                                          word.z | (unsigned long long)word.w << 32};
    asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(to), "l"(halves[0]),
                 "l"(halves[1])
                 : "memory");
}

__device__ __forceinline__ Word load_word(const Word* from) {
    unsigned long long halves[2];
    asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                 : "=l"(halves[0]), "=l"(halves[1])
                 : "l"(from)
                 : "memory");
    return {unsigned(halves[0]), unsigned(halves[0] >> 32), unsigned(halves[1]),
            unsigned(halves[1] >> 32)};
}

// Ends waits that last too long. After that, the block no longer waits, and its results are NaN.
struct Watchdog {
    const Watch& watch;
    int& dead;  // of the block, in shared memory
    unsigned polls = 0;
    long long began = 0;

    __device__ __forceinline__ Watchdog(const Watch& watch, int& dead) : watch(watch), dead(dead) {}

    // Returns whether to stop waiting for `exchange`. Called after every poll in vain.
    __device__ __forceinline__ bool expired(unsigned exchange) {
        if (++polls % 1024 != 0) return false;
        if (*(volatile int*)&dead) return true;
        long long now;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        if (polls == 1024) began = now;
        if (watch.limit == 0 || now - began < watch.limit) return false;
        if (atomicExch(&dead, 1) == 0) {
            watch.report[1] = blockIdx.x;
            watch.report[2] = exchange;
            __threadfence_system();
            *(volatile unsigned*)watch.report = watch.kernel;
        }
        return true;
    }
};

// Sends and receives the values of a group's units, VALUES per unit.
//
// A row of a block has WORDS words: value v of unit u is number v UNITS + u, padded with zeros. The
// words of all blocks are numbered in order. Four consecutive words are a *chunk*; in memory the
// chunk's words of a row lie side by side, so that the lanes of a warp, which receive four words of
// eight rows, read consecutive memory.
template <int VALUES> struct Exchange {
    static constexpr int WORDS = (VALUES * UNITS + WORD_VALUES - 1) / WORD_VALUES;
    static constexpr int ALL_WORDS = BLOCKS * WORDS;
    static constexpr int CHUNKS = (ALL_WORDS + 3) / 4;
    static constexpr int CHUNKS_PER_WARP = (CHUNKS + WARPS - 1) / WARPS;
    static constexpr int ROW_VALUES = WORDS * WORD_VALUES;

    // A warp's rows before they are sent.
    using Stage = T[WARP_ROWS][ROW_VALUES];

    Word* buffers;  // [2][CHUNKS][ROWS][4]

    __device__ __forceinline__ Exchange(void* words, const Block& block, int heads) {
        const int group = block.group * heads + block.head;
        buffers = static_cast<Word*>(words) + Offset(group) * 2 * CHUNKS * ROWS * 4;
    }

    __device__ __forceinline__ Word* buffer(unsigned exchange) const {
        return buffers + exchange % 2 * (CHUNKS * ROWS * 4);
    }

    static __device__ __forceinline__ unsigned stamp(unsigned exchange) {
        return exchange & 0xffff;
    }

    // Sends the staged rows of a warp, which begin at `row0`, as exchange number `exchange`.
    __device__ __forceinline__ void send(const Stage& stage, const Block& block, int row0,
                                         unsigned exchange) const {
        __syncwarp();
        delay();
        Word* const to = buffer(exchange);
#pragma unroll
        for (int first = 0; first < WARP_ROWS * WORDS; first += 32) {
            const int i = first + threadIdx.x % 32, row = row0 + i / WORDS;
            if (i >= WARP_ROWS * WORDS || row >= ROWS) continue;
            const int word = block.rank * WORDS + i % WORDS;
            const unsigned* values = reinterpret_cast<const unsigned*>(
                &stage[i / WORDS][i % WORDS * WORD_VALUES]);
            const unsigned pairs[3] = {values[0], values[1], values[2]};
            store_word(to + (word / 4 * ROWS + row) * 4 + word % 4,
                       make_word(pairs, stamp(exchange)));
        }
        __syncwarp();
    }

    // Receives COUNT of this lane's words of chunk `WARPS * first + warp`, then every WARPS-th, and
    // of all column tiles. Words that do not exist are zero.
    template <int COUNT>
    __device__ __forceinline__ void receive(Word (&v)[COUNT][COLUMN_TILES], int first,
                                            unsigned exchange, Watchdog& watchdog) const {
        const int lane = threadIdx.x % 32, q = lane % 4, row = lane / 4 % ROWS;
        const int chunk = first * WARPS + threadIdx.x / 32;
        const Word* const from = buffer(exchange) + (chunk * ROWS + row) * 4 + q;
        unsigned stale = 0;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
#pragma unroll
            for (int tile = 0; tile < COLUMN_TILES; ++tile) {
                v[i][tile] = Word{};
                if ((chunk + i * WARPS) * 4 + q < ALL_WORDS) stale |= 1u << (i * COLUMN_TILES + tile);
            }
        }
        delay();
        do {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
#pragma unroll
                for (int tile = 0; tile < COLUMN_TILES; ++tile)
                    if (stale >> (i * COLUMN_TILES + tile) & 1)
                        v[i][tile] = load_word(from + (i * WARPS * ROWS + tile * 8) * 4);
            }
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
#pragma unroll
                for (int tile = 0; tile < COLUMN_TILES; ++tile)
                    if (has_stamp(v[i][tile], stamp(exchange)))
                        stale &= ~(1u << (i * COLUMN_TILES + tile));
            }
        } while (__any_sync(~0u, stale != 0) && !watchdog.expired(exchange));
        __syncwarp();
    }
};
