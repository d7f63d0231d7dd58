// The exchange of a group through L2, in words that say which exchange they belong to.
//
// A word has 16 bytes: six values of one batch row, and two copies of a *stamp*, the low 16 bits of
// the exchange's number. Each half, 8 bytes, is written by one relaxed store and read by relaxed
// loads of the same size and address, so a half whose stamp is the expected one has the values of
// that exchange (PTX ISA, "Memory Consistency Model": such accesses are morally strong and
// single-copy atomic). No fence is needed:
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

// Ends waits that last too long. When one block gives up, all blocks of the launch stop waiting and
// their results become NaN. Only the first of them reports, so that the host sees one error.
struct Watchdog {
    // Vain polls between two looks at the clock. Few in tests, where delays make polls rare.
    static constexpr unsigned POLLS = DELAYS ? 4 : 1024;

    const Watch& watch;
    int& dead;        // of the block, in shared memory
    unsigned* ended;  // of the launch, behind its words; 0 at first
    bool gave_up = false;
    unsigned polls = 0;
    unsigned long long began = 0;  // 0 if the clock has not been read

    __device__ __forceinline__ Watchdog(const Watch& watch, int& dead, unsigned* ended)
        : watch(watch), dead(dead), ended(ended) {}

    // Begins to watch the waits of an exchange.
    __device__ __forceinline__ void start() {
        gave_up = *(volatile int*)&dead;
        polls = 0;
        began = 0;
    }

    // Returns whether to stop waiting for `exchange`. Called after every poll that found words
    // missing. The clock starts when it is read first, after POLLS calls.
    __device__ __forceinline__ bool expired(unsigned exchange) {
        if (gave_up) return true;
        if (++polls % POLLS != 0) return false;
        unsigned long long now;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        if (began == 0) began = now;
        unsigned others;
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(others) : "l"(ended) : "memory");
        if (!others) {
            if (watch.limit == 0 || now - began < watch.limit) return false;
            if (atomicExch(ended, 1u) == 0)
                *(volatile unsigned long long*)watch.report =
                    (unsigned long long)exchange << 32 | blockIdx.x << 2 | watch.kernel;
        }
        gave_up = true;
        atomicExch(&dead, 1);
        return true;
    }
};

// Clears the flag of a block's watchdog, and `stage`, whose padding stays zero. The block's threads
// must synchronise before they use them.
template <class Stages> __device__ __forceinline__ void clear(int& dead, Stages& stage) {
    if (threadIdx.x == 0) dead = 0;
    for (int i = threadIdx.x; i < int(sizeof(stage) / sizeof(T)); i += THREADS)
        reinterpret_cast<T*>(stage)[i].bits = 0;
}

// Sends and receives the values of the senders' units, VALUES per unit.
//
// A row of a block has WORDS words: value v of unit u is number v UNITS + u, and the rest of the
// last word is zero. The words of all senders are numbered in order. Four consecutive words are a
// *chunk*; a row's words of a chunk are adjacent in memory, so that the lanes of a warp, which
// receive four words of eight rows, read consecutive memory.
template <int VALUES> struct Exchange {
    static constexpr int WORDS = (VALUES * UNITS + WORD_VALUES - 1) / WORD_VALUES;
    static constexpr int ALL_WORDS = SENDERS * WORDS;
    static constexpr int CHUNKS = (ALL_WORDS + 3) / 4;
    static constexpr int CHUNKS_PER_WARP = (CHUNKS + WARPS - 1) / WARPS;
    static constexpr int ROW_VALUES = WORDS * WORD_VALUES;

    // A warp's rows before they are sent.
    using Stage = T[WARP_ROWS][ROW_VALUES];

    Word* buffers;  // [2][CHUNKS][ROWS][4]

    __device__ __forceinline__ Exchange(void* words, const Block& block, int heads) {
        const int set = (block.group * heads + block.head) * CLUSTER + block.rank_in_cluster;
        buffers = static_cast<Word*>(words) + Offset(set) * 2 * CHUNKS * ROWS * 4;
    }

    // Returns the flag of the launch's watchdogs. `Grid::exchange_bytes` has room for it.
    static __device__ __forceinline__ unsigned* ended(void* words) {
        const Offset sets = gridDim.x / SENDERS;
        return reinterpret_cast<unsigned*>(static_cast<Word*>(words) +
                                           sets * 2 * CHUNKS * ROWS * 4);
    }

    __device__ __forceinline__ Word* buffer(unsigned exchange) const {
        return buffers + exchange % 2 * (CHUNKS * ROWS * 4);
    }

    static __device__ __forceinline__ unsigned stamp(unsigned exchange) {
        return exchange & 0xffff;
    }

    // What a lane sends: for each cell c, one word of one of the warp's rows.
    struct Sender {
        static_assert(WARP_ROWS * WORDS <= 32, "a lane sends one word");
        Word* to;  // for cell 0, in the buffer of even exchanges
        const unsigned* values;
        int row;   // of cell 0; ROWS or more if the lane sends nothing

        __device__ __forceinline__ Sender(const Exchange& all, const Block& block,
                                          const Place& place, const Stage& stage) {
            const int row_in_warp = place.lane / WORDS, i = place.lane % WORDS;
            const bool sends = row_in_warp < WARP_ROWS;
            row = sends ? place.warp_row(0) + row_in_warp : ROWS;
            const int word = block.cluster * WORDS + i;
            to = all.buffers + (word / 4 * ROWS + row) * 4 + word % 4;
            values = reinterpret_cast<const unsigned*>(
                &stage[sends ? row_in_warp : 0][i * WORD_VALUES]);
        }
    };

    // Sends the warp's staged rows of cell c as exchange number `exchange`.
    __device__ __forceinline__ void send(const Sender& sender, int c, unsigned exchange) const {
        __syncwarp();
        delay();
        const int further = c * WARPS * WARP_ROWS;
        if (sender.row + further < ROWS) {
            const unsigned pairs[3] = {sender.values[0], sender.values[1], sender.values[2]};
            store_word(sender.to + further * 4 + exchange % 2 * (CHUNKS * ROWS * 4),
                       make_word(pairs, stamp(exchange)));
        }
        __syncwarp();
    }

    // With fewer than 8 rows, the lanes of the surplus columns load further chunks.
    static constexpr int SPREAD = ROWS < 8 ? 8 / ROWS : 1;
    // The number of loads of a lane. Each load serves SPREAD chunks.
    static constexpr int LOADS = (CHUNKS_PER_WARP + SPREAD - 1) / SPREAD;

    // The words of an exchange on their way to this lane. Load i takes slot i % SLOTS.
    struct Receiver {
        static constexpr int SLOTS = LOADS < WINDOW ? LOADS : WINDOW;
        Word words[SLOTS][COLUMN_TILES];
        unsigned stale = 0;  // a bit per word, set until the word arrives

        const Word* from;  // of load 0
        int first_word;    // the number of this lane's word in load 0
        unsigned exchange;
        Watchdog& watchdog;

        // `since` is the clock at the block's last barrier.
        __device__ __forceinline__ Receiver(const Exchange& all, unsigned exchange,
                                            unsigned since, Watchdog& watchdog)
            : exchange(exchange), watchdog(watchdog) {
            const int lane = threadIdx.x % 32, q = lane % 4, column = lane / 4;
            const int chunk = column / ROWS % SPREAD * WARPS + threadIdx.x / 32;
            from = all.buffer(exchange) + (chunk * ROWS + column % ROWS) * 4 + q;
            first_word = chunk * 4 + q;
            watchdog.start();
            delay();
            while (unsigned(clock()) - since < HOLD) {}
        }

        static __device__ __forceinline__ constexpr unsigned bit(int load, int tile) {
            return 1u << (load % SLOTS * COLUMN_TILES + tile);
        }

        // Loads the stale words of a load.
        __device__ __forceinline__ void poll(int load) {
#pragma unroll
            for (int tile = 0; tile < COLUMN_TILES; ++tile)
                if (stale & bit(load, tile))
                    words[load % SLOTS][tile] =
                        load_word(from + (load * SPREAD * WARPS * ROWS + tile * 8) * 4);
        }

        // Marks the words of a load that have arrived.
        __device__ __forceinline__ void check(int load) {
#pragma unroll
            for (int tile = 0; tile < COLUMN_TILES; ++tile)
                if (has_stamp(words[load % SLOTS][tile], stamp(exchange)))
                    stale &= ~bit(load, tile);
        }

        // Begins a load. Words that do not exist are zero.
        __device__ __forceinline__ void begin(int load) {
#pragma unroll
            for (int tile = 0; tile < COLUMN_TILES; ++tile) {
                words[load % SLOTS][tile] = Word{};
                stale &= ~bit(load, tile);  // set if the watchdog ended the wait before
                if (first_word + load * SPREAD * WARPS * 4 < ALL_WORDS) stale |= bit(load, tile);
            }
            poll(load);
        }

        // Waits for the words of a load. As long as they have not arrived, the loads after it,
        // which have begun, are repeated too.
        __device__ __forceinline__ void wait(int load) {
            check(load);
            const unsigned bits = ((1u << COLUMN_TILES) - 1) << (load % SLOTS * COLUMN_TILES);
            while (__any_sync(~0u, stale & bits)) {
                // The lanes read different times, but leave together.
                if (__any_sync(~0u, watchdog.expired(exchange))) break;
#pragma unroll
                for (int later = 1; later < SLOTS; ++later)
                    if (load + later < LOADS) check(load + later);
#pragma unroll
                for (int later = 0; later < SLOTS; ++later)
                    if (load + later < LOADS) poll(load + later);
                check(load);
            }
            __syncwarp();
        }

        // Returns pair i of word `lane % 4` of a chunk, for the row of the lane's column. All lanes
        // call this.
        __device__ __forceinline__ unsigned pair(int chunk, int tile, int i) const {
            const int load = chunk / SPREAD;
            if (load >= LOADS) return 0;
            const unsigned pair = pair_of(words[load % SLOTS][tile], i);
            if (SPREAD == 1) return pair;
            const int lane = threadIdx.x % 32;
            return __shfl_sync(~0u, pair, chunk % SPREAD * ROWS * 4 + lane % (ROWS * 4));
        }
    };
};
