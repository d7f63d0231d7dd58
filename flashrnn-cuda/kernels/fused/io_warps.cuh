// IO warps prefetch the inputs of later steps into shared memory and store the results of the
// previous step, up to 16 bytes per lane. Each thread serves one batch row and computes its base
// addresses once, before the time loop.
//
// COPY_BYTES divides the address of every row. If it is 16, 8 or 4, a lane copies that many bytes
// at a time. If it is 2, rows may start in the middle of a word (alignment.cuh). A lane then copies
// whole words, except that the first and last elements of a stored row are stored individually if
// they share a word with another row. If it is 1, interleaved gates may start anywhere and are
// copied by element. This is slow, but no allocator returns such memory.
#pragma once
#include "fused/alignment.cuh"
#include "fused/async_copy.cuh"

constexpr int LANES_PER_ROW = 32 * IO_WARPS / ROWS;

// Returns the index of this thread among the block's IO threads.
__device__ __forceinline__ int io_thread() { return threadIdx.x - COMPUTE_THREADS; }

// The tokens of consecutive steps, if every row has all steps.
struct TokenWalk {
    Offset first, stride;

    // Starts at step `step` and moves forwards in time (direction 1) or backwards (-1).
    __device__ __forceinline__ TokenWalk(const Sizes& sizes, const Row& row, int step,
                                         int direction)
        : first(sizes.token(row.index, sizes.reverse ? sizes.time - 1 - step : step)),
          stride((sizes.reverse ? -direction : direction) * (sizes.time_major ? sizes.batch : 1)) {}
};

// Computes shared memory addresses from one base address, which the compiler must keep in a
// register. Otherwise it would recompute each address from the block's rank in every step.
struct SharedAddresses {
    const void* memory;
    unsigned base;

    __device__ __forceinline__ explicit SharedAddresses(const void* memory) : memory(memory) {
        asm volatile("mov.u32 %0, %1;" : "=r"(base) : "r"(shared_address(memory)));
    }

    __device__ __forceinline__ unsigned operator()(const void* p) const {
        const auto offset = static_cast<const char*>(p) - static_cast<const char*>(memory);
        return base + unsigned(offset);
    }
};

// Whether tensors of P are copied by element.
template <class P> constexpr bool BY_ELEMENT = false;
template <> constexpr bool BY_ELEMENT<const GateVector> = INTERLEAVED && COPY_BYTES == 1;

// Returns the number of lanes that share a tensor's row, a power of 2. It minimises the words per
// lane, then the number of lanes, as long as they copy at least 32 bytes together. With fewer
// lanes, more of a lane's words are at constant distances from one address register.
__host__ __device__ constexpr int lanes_per_tensor(int tensors, int words, int word_bytes) {
    int best = LANES_PER_ROW, best_count = 1 << 30;
    for (int lanes = LANES_PER_ROW; lanes > 0 && lanes * word_bytes >= 32; lanes /= 2) {
        const int at_once = LANES_PER_ROW / lanes;
        const int count = (tensors + at_once - 1) / at_once * ((words + lanes - 1) / lanes);
        if (count > best_count) continue;
        best = lanes;
        best_count = count;
    }
    return best;
}

// Copies this thread's share of its batch row in TENSORS tensors: words of the block's units. In
// shared memory, tensors are TENSOR_STRIDE elements apart and rows ROW_STRIDE.
//
// With RAGGED, each call computes the address of its token. Otherwise each call advances to the
// next step.
template <class P, int TENSORS, int TENSOR_STRIDE, int ROW_STRIDE> struct RowCopies {
    static constexpr bool SPLIT = SPLIT_ROWS && sizeof(P) == sizeof(T);
    // When tensors are 16-bit, f32 rows are aligned to twice as many bytes.
    static constexpr int ALIGNMENT = COPY_BYTES * int(sizeof(P) / sizeof(T));
    static constexpr int ALIGNED_BYTES = ALIGNMENT < 4 ? 4 : ALIGNMENT > 16 ? 16 : ALIGNMENT;
    static constexpr int WORD_BYTES = BY_ELEMENT<P> ? int(sizeof(P)) : ALIGNED_BYTES;
    static constexpr int WORD_UNITS = WORD_BYTES / sizeof(P);
    static constexpr int ROW_WORDS =
        SPLIT ? MAX_UNITS / WORD_UNITS + 1 : (MAX_UNITS + WORD_UNITS - 1) / WORD_UNITS;
    static constexpr int TENSOR_LANES = lanes_per_tensor(TENSORS, ROW_WORDS, WORD_BYTES);
    static constexpr int TENSORS_AT_ONCE = LANES_PER_ROW / TENSOR_LANES;
    // Per lane: the number of tensors, the words of each, and the units between consecutive words.
    static constexpr int LANE_TENSORS = (TENSORS + TENSORS_AT_ONCE - 1) / TENSORS_AT_ONCE;
    static constexpr int LANE_WORDS = (ROW_WORDS + TENSOR_LANES - 1) / TENSOR_LANES;
    static constexpr int WORD_STRIDE = TENSOR_LANES * WORD_UNITS;
    using Word = typename WordOf<WORD_BYTES>::Type;

    P* base[at_least_one(LANE_TENSORS)];         // at token 0 if RAGGED, else at the next step
    Offset stride[at_least_one(LANE_TENSORS)];   // elements per token if RAGGED, else per step
    int remaining[at_least_one(LANE_TENSORS)];   // units from this lane's first; -1 if no tensor
    int unit;                                    // this lane's first unit
    int place;                                   // its offset in shared memory, in bytes

    // `tensor_of(i)` returns tensor i, whose `first` may be null.
    template <class TensorOf>
    __device__ __forceinline__ RowCopies(const Block& block, const TokenWalk& walk,
                                         TensorOf tensor_of) {
        const int row = io_thread() / LANES_PER_ROW, lane = io_thread() % LANES_PER_ROW;
        const int first_tensor = lane / TENSOR_LANES;
        unit = lane % TENSOR_LANES * WORD_UNITS;
        place = (first_tensor * TENSOR_STRIDE + row * ROW_STRIDE + unit) * int(sizeof(P));
#pragma unroll
        for (int i = 0; i < LANE_TENSORS; ++i) {
            const int index = first_tensor + i * TENSORS_AT_ONCE;
            const Tensor<P> tensor = tensor_of(::min(index, TENSORS - 1));
            const bool exists = index < TENSORS && row < block.rows && tensor.first;
            base[i] = tensor.first + unit + (RAGGED ? 0 : walk.first * tensor.token_stride);
            stride[i] = tensor.token_stride * (RAGGED ? 1 : walk.stride);
            remaining[i] = exists ? ::max(block.units - unit, -1) : -1;
        }
    }

    // Starts copying the row of `token`. `shared` is the shared memory address of tensor 0, row 0.
    __device__ __forceinline__ void load(unsigned shared, Offset token) {
#pragma unroll
        for (int i = 0; i < LANE_TENSORS; ++i) {
            const P* from = advance(i, token);
            // The element before a shifted row belongs to the same allocation, so it may be copied
            // too. The element after a row may be outside the allocation, so it is not read.
            const int shift = shift_of(from), units = remaining[i] + shift;
            from -= shift;
#pragma unroll
            for (int j = 0; j < LANE_WORDS; ++j) {
                if (units <= j * WORD_STRIDE) continue;
                if constexpr (BY_ELEMENT<P>)
                    copy_elements(shared_word(shared, i, j),
                                  reinterpret_cast<const T*>(from + j * WORD_STRIDE),
                                  sizeof(P) / sizeof(T));
                else if constexpr (SPLIT)
                    copy_word_async(shared_word(shared, i, j), from + j * WORD_STRIDE,
                                    may_be_whole(j) && units > j * WORD_STRIDE + 1 ? 4 : 2);
                else
                    copy_async<WORD_BYTES>(shared_word(shared, i, j), from + j * WORD_STRIDE);
            }
        }
    }

    // Stores the row at `shared` to `token`, or zeros if the row is not active. Loads several words
    // before it stores the first, to overlap their latencies.
    __device__ __forceinline__ void store(unsigned shared, Offset token, bool active) {
        constexpr int AT_ONCE = LANE_WORDS >= 8 ? 1 : 8 / LANE_WORDS;
#pragma unroll
        for (int first = 0; first < LANE_TENSORS; first += AT_ONCE)
            store_some<AT_ONCE>(first, shared, token, active);
    }

private:
    // Returns the address of this lane's first unit in the row of `token` of tensor i.
    __device__ __forceinline__ P* advance(int i, Offset token) {
        if constexpr (RAGGED) return base[i] + token * stride[i];
        P* const now = base[i];
        base[i] += stride[i];
        return now;
    }

    // Returns 1 if the element is the upper half of a word, otherwise 0.
    static __device__ __forceinline__ int shift_of(const P* p) {
        return SPLIT ? int(reinterpret_cast<size_t>(p) / sizeof(P) & 1) : 0;
    }

    // Returns the shared memory address of this lane's word j of tensor i.
    __device__ __forceinline__ unsigned shared_word(unsigned shared, int i, int j) const {
        const int elements = i * TENSORS_AT_ONCE * TENSOR_STRIDE + j * WORD_STRIDE;
        return shared + place + elements * int(sizeof(P));
    }

    // Stores this lane's tensors `first` to `first + AT_ONCE - 1`.
    template <int AT_ONCE>
    __device__ __forceinline__ void store_some(int first, unsigned shared, Offset token,
                                               bool active) {
        Word v[AT_ONCE][LANE_WORDS];
        P* to[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE && first + k < LANE_TENSORS; ++k) {
            const int i = first + k;
            to[k] = advance(i, token);
            const int shift = shift_of(to[k]);
#pragma unroll
            for (int j = 0; j < LANE_WORDS; ++j) {
                v[k][j] = Word{};
                if constexpr (SPLIT) {
                    const int units = remaining[i] + shift - j * WORD_STRIDE;
                    const unsigned low =
                        load_half_if(active && has_low(shift, units, j),
                                     shared_word(shared, i, j) - 2 * shift);
                    const unsigned high =
                        load_half_if(active && has_high(units, j),
                                     shared_word(shared, i, j) + 2 - 2 * shift);
                    v[k][j] = low | high << 16;
                } else if (active && remaining[i] > j * WORD_STRIDE) {
                    v[k][j] = in_shared<Word>(shared_word(shared, i, j));
                }
            }
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE && first + k < LANE_TENSORS; ++k) {
            const int i = first + k;
#pragma unroll
            for (int j = 0; j < LANE_WORDS; ++j) {
                if constexpr (SPLIT)
                    store_split(to[k], v[k][j], remaining[i], j);
                else if (remaining[i] > j * WORD_STRIDE)
                    *reinterpret_cast<Word*>(to[k] + j * WORD_STRIDE) = v[k][j];
            }
        }
    }

    // These return whether the low and the high element of word j are units of the row. `units`
    // counts from the low element of the word. In a shifted row, the low element of the first word
    // precedes unit 0. The word beyond MAX_UNITS has at most a low element.
    __device__ __forceinline__ bool has_low(int shift, int units, int j) const {
        return units > 0 && (j > 0 || unit >= shift);
    }
    static __device__ __forceinline__ bool has_high(int units, int j) {
        return may_be_whole(j) && units > 1;
    }
    static __device__ __forceinline__ constexpr bool may_be_whole(int j) {
        return j * WORD_STRIDE < MAX_UNITS;
    }

    // Stores word j. If two rows share the word, stores only the element of this row.
    __device__ __forceinline__ void store_split(P* to, unsigned v, int remaining, int j) const {
        const int shift = shift_of(to), units = remaining + shift - j * WORD_STRIDE;
        const bool low = has_low(shift, units, j), high = has_high(units, j);
        P* const word = to - shift + j * WORD_STRIDE;
        if (may_be_whole(j)) store_if(low && high, reinterpret_cast<unsigned*>(word), v);
        store_if(low && !high, reinterpret_cast<unsigned short*>(word), (unsigned short)v);
        if (j == 0)
            store_if(high && !low, reinterpret_cast<unsigned short*>(word) + 1,
                     (unsigned short)(v >> 16));
    }
};
