// What the fused kernels' carrying warps do: bring a step's inputs to shared memory ahead of time,
// and take results from there, up to 16 bytes a lane. Each of their threads serves one row of the
// batch, and works its addresses out once, before the time loop.
//
// -DCOPY_BYTES divides the addresses of all tensors of T and the bytes of D elements, and so the
// address of every row: 16, 8 or 4 are what a lane copies at a time. With 2, rows of 16-bit
// elements may begin in the middle of a word of 4 bytes. Then a lane copies whole words: fetched
// rows lie in shared memory one element further where their address is odd (`Shifts`), and the
// first and the last element of a stored row are written alone where their words are shared with
// other rows.
#pragma once
#include "fused/exchange.cuh"

static_assert(ROWS == 4 || ROWS == 8, "the tensor cores take 8 rows of the batch; 4 leave more to other blocks");

constexpr int LANES = 32 * IO_WARPS / ROWS;  // carrying threads for each row

__device__ __forceinline__ int carrying_thread() { return threadIdx.x - 32 * WARPS; }

constexpr int CELLS = BLOCKS == 1 ? HEAD_DIM : UNITS;  // the most units that a block has

// Whether rows may begin in the middle of a word.
constexpr bool SHIFTED = COPY_BYTES < 4;

// Which units, head and rows a block has.
struct Block {
    int head, row0, unit0, units, rows;

    __device__ __forceinline__ Block(const Sizes& sizes) {
        const int cluster = blockIdx.x / BLOCKS;
        head = cluster % sizes.heads;
        row0 = cluster / sizes.heads * ROWS;
        unit0 = blockIdx.x % BLOCKS * UNITS;
        units = ::max(0, ::min(UNITS, HEAD_DIM - unit0));
        rows = ::min(ROWS, sizes.batch - row0);
    }

    // The block's first unit among the N D of a token.
    __device__ __forceinline__ Offset place() const { return Offset(head) * HEAD_DIM + unit0; }
};

// A tensor in global memory: the block's first unit at token 0, and the elements from a token to
// the next.
template <class P> struct Tensor {
    P* first;
    Offset token_stride;
};

// The token of the first step that is carried, and the tokens from each step to the next: where
// every row has all steps.
struct Walk {
    Offset token, advance;

    // From step `first`, forwards (direction 1) or backwards (-1).
    __device__ __forceinline__ Walk(const Sizes& sizes, const Row& row, int first, int direction)
        : token(sizes.token(row.index, sizes.reverse ? sizes.time - 1 - first : first)),
          advance((sizes.reverse ? -direction : direction) * (sizes.time_major ? sizes.batch : 1)) {}
};

template <class P> struct Plain { using Type = P; };
template <class P> struct Plain<const P> { using Type = P; };

// Where things lie in shared memory, from one address that the compiler holds in a register: left
// alone it works each out anew every step, from the block's place in its cluster.
struct SharedAddresses {
    const void* memory;
    unsigned first;

    __device__ __forceinline__ explicit SharedAddresses(const void* memory) : memory(memory) {
        asm volatile("mov.u32 %0, %1;" : "=r"(first) : "r"(shared_address(memory)));
    }
    __device__ __forceinline__ unsigned operator()(const void* p) const {
        return first + unsigned(static_cast<const char*>(p) - static_cast<const char*>(memory));
    }
};

// All gates of a unit. With -DINTERLEAVED saved gates are [tokens, N, D, G], so that a unit's lie
// at a multiple of their size. Without it nothing is copied as these, whatever the number of gates,
// and one is as good as all.
constexpr int TOGETHER_GATES = INTERLEAVED ? Cell::GATES : 1;
struct alignas(TOGETHER_GATES * sizeof(T)) AllGates {
    T of[TOGETHER_GATES];
};

// With -DCOPY_BYTES=1 they may begin anywhere, which costs what it costs: nobody's allocator gives
// such memory.
template <class P> constexpr bool ANYWHERE = false;
template <> constexpr bool ANYWHERE<const AllGates> = INTERLEAVED && COPY_BYTES == 1;

// Which of up to 16 tensors' rows lie one element further in shared memory than where they are
// aligned, since they begin in the middle of a word: bit i for tensor i.
struct Shifts {
    unsigned bits = 0;  // the lower half: at token 0; the upper half: those that change from each token to the next

    template <class TensorOf> __device__ __forceinline__ Shifts(int tensors, TensorOf tensor_of) {
        if (!SHIFTED) return;
#pragma unroll
        for (int i = 0; i < tensors; ++i) {
            const auto tensor = tensor_of(i);
            bits |= unsigned(reinterpret_cast<size_t>(tensor.first) / sizeof(T) & 1) << i;
            bits |= unsigned(tensor.token_stride & 1) << (16 + i);
        }
    }

    // For the token whose lowest bit is given.
    __device__ __forceinline__ unsigned at(unsigned bit) const { return SHIFTED ? bits ^ (bits >> 16 & -bit) : 0; }
};

// The lowest bit of a row's tokens.
struct TokenBit {
    unsigned first, per_step;  // of step 0's; what it changes by from step to step

    __device__ __forceinline__ TokenBit(const Sizes& sizes, int row)
        : first(unsigned(token_of(sizes, row, sizes.time, 0))), per_step(sizes.time_major ? sizes.batch : 1) {}

    __device__ __forceinline__ unsigned at(const Sizes& sizes, int row, int length, int step) const {
        if constexpr (RAGGED) return unsigned(token_of(sizes, row, length, step)) & 1;
        return (first ^ (per_step & unsigned(step))) & 1;
    }
};

static_assert(Cell::GATES <= 16 && Cell::STATES <= 16, "bits of Shifts");

// The lanes that share a tensor's row, a power of 2: so that each has the fewest of `pieces` of
// `bytes` in `tensors` rows, and among these the fewest lanes that copy 32 bytes at a time, since
// then a lane has more pieces at one address.
__host__ __device__ constexpr int lanes_of_tensor(int tensors, int pieces, int bytes) {
    int best = LANES, best_count = 1 << 30;
    for (int lanes = LANES; lanes > 0 && lanes * bytes >= 32; lanes /= 2) {
        const int together = LANES / lanes;
        const int count = (tensors + together - 1) / together * ((pieces + lanes - 1) / lanes);
        if (count > best_count) continue;
        best = lanes;
        best_count = count;
    }
    return best;
}

// This thread's share of the block's units of its row, of TENSORS tensors. In shared memory a
// tensor begins TENSOR_STRIDE elements after the one before, a row ROW_STRIDE after the one before.
//
// A token is looked up where rows are ragged; elsewhere each call goes on to the next step by
// itself.
template <class P, int TENSORS, int TENSOR_STRIDE, int ROW_STRIDE> struct Pieces {
    static constexpr bool SPLIT_WORDS = SHIFTED && sizeof(P) == sizeof(T);
    // Rows of f32 beside 16-bit tensors have twice their alignment.
    static constexpr int ALIGNMENT = COPY_BYTES * int(sizeof(P) / sizeof(T));
    static constexpr int BYTES = ANYWHERE<P> ? int(sizeof(P)) : ALIGNMENT < 4 ? 4 : ALIGNMENT > 16 ? 16 : ALIGNMENT;
    static constexpr int WIDTH = BYTES / sizeof(P);          // units of a piece
    static constexpr int OF_ROW = SPLIT_WORDS ? CELLS / WIDTH + 1 : (CELLS + WIDTH - 1) / WIDTH;  // pieces of a row
    static constexpr int SHARE = lanes_of_tensor(TENSORS, OF_ROW, BYTES);
    static constexpr int TOGETHER = LANES / SHARE;  // tensors that the lanes of a row copy at once
    static constexpr int OF_LANE = (TENSORS + TOGETHER - 1) / TOGETHER;  // tensors of a lane
    static constexpr int COUNT = (OF_ROW + SHARE - 1) / SHARE;           // pieces of each
    static constexpr int STEP = SHARE * WIDTH;                           // units from each to the next
    using Word = typename WordOf<BYTES>::Type;

    P* at[at_least_one(OF_LANE)];          // RAGGED: at token 0, else at the next step
    Offset stride[at_least_one(OF_LANE)];  // elements from a token, or step, to the next
    int left[at_least_one(OF_LANE)];       // units of the row from this lane's first on; -1 where there is nothing
    int unit, place;                       // this lane's first unit; its bytes from where tensor 0 lies in shared memory

    template <class TensorOf>
    __device__ __forceinline__ Pieces(const Block& block, const Walk& walk, TensorOf tensor_of) {
        const int r = carrying_thread() / LANES, q = carrying_thread() % LANES;
        unit = q % SHARE * WIDTH;
        place = (q / SHARE * TENSOR_STRIDE + r * ROW_STRIDE + unit) * int(sizeof(P));
#pragma unroll
        for (int i = 0; i < OF_LANE; ++i) {
            const int which = q / SHARE + i * TOGETHER;
            const Tensor<P> tensor = tensor_of(::min(which, TENSORS - 1));
            const bool exists = which < TENSORS && r < block.rows && tensor.first;
            at[i] = tensor.first + unit + (RAGGED ? 0 : walk.token * tensor.token_stride);
            stride[i] = tensor.token_stride * (RAGGED ? 1 : walk.advance);
            left[i] = exists ? ::max(block.units - unit, -1) : -1;
        }
    }

    __device__ __forceinline__ P* address(int i, Offset token) {
        if constexpr (RAGGED) return at[i] + token * stride[i];
        P* const now = at[i];
        at[i] += stride[i];
        return now;
    }

    // 1 where an element lies in the upper half of a word.
    static __device__ __forceinline__ int shift(const P* p) {
        return SPLIT_WORDS ? int(reinterpret_cast<size_t>(p) / sizeof(P) & 1) : 0;
    }

    // Where piece j of tensor i lies in shared memory, of this lane's.
    __device__ __forceinline__ unsigned in(unsigned shared, int i, int j) const {
        return shared + place + (i * TOGETHER * TENSOR_STRIDE + j * STEP) * int(sizeof(P));
    }

    // Brings what lies at `token` to shared memory at `shared`, without waiting: shifted rows one
    // element further.
    __device__ __forceinline__ void fetch(unsigned shared, Offset token) {
#pragma unroll
        for (int i = 0; i < OF_LANE; ++i) {
            const P* from = address(i, token);
            // Of a split word, both elements or one are the row's. The element before it is some
            // other's in the same memory; the one after it might be in none, and is not read.
            const int shift = this->shift(from), units = left[i] + shift;
            from -= shift;
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                if (units <= j * STEP) continue;
                if constexpr (ANYWHERE<P>)
                    copy_elements(in(shared, i, j), reinterpret_cast<const T*>(from + j * STEP), sizeof(P) / sizeof(T));
                else if constexpr (SPLIT_WORDS)
                    copy_word_async(in(shared, i, j), from + j * STEP, may_be_whole(j) && units > j * STEP + 1 ? 4 : 2);
                else
                    copy_async<BYTES>(in(shared, i, j), from + j * STEP);
            }
        }
    }

    // Takes what lies at `shared` to `token`; zeros where the row is not active. Of so many pieces
    // at once that one's way to shared memory hides behind another's.
    __device__ __forceinline__ void store(unsigned shared, Offset token, bool active) {
        constexpr int AT_ONCE = COUNT >= 8 ? 1 : 8 / COUNT;
#pragma unroll
        for (int first = 0; first < OF_LANE; first += AT_ONCE) store_some<AT_ONCE>(first, shared, token, active);
    }

    // AT_ONCE tensors of this lane, from `first` on.
    template <int AT_ONCE>
    __device__ __forceinline__ void store_some(int first, unsigned shared, Offset token, bool active) {
        Word v[AT_ONCE][COUNT];
        P* to[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE && first + k < OF_LANE; ++k) {
            const int i = first + k;
            to[k] = address(i, token);
            const int shift = this->shift(to[k]);
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                v[k][j] = Word{};
                if constexpr (SPLIT_WORDS) {
                    const int units = left[i] + shift - j * STEP;
                    const unsigned low = load_half_if(active && has_low(shift, units, j), in(shared, i, j) - 2 * shift);
                    const unsigned high = load_half_if(active && has_high(units, j), in(shared, i, j) + 2 - 2 * shift);
                    v[k][j] = low | high << 16;
                } else if (active && left[i] > j * STEP) {
                    v[k][j] = in_shared<Word>(in(shared, i, j));
                }
            }
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE && first + k < OF_LANE; ++k) {
            const int i = first + k;
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                if constexpr (SPLIT_WORDS)
                    store_split(to[k], v[k][j], left[i], j);
                else if (left[i] > j * STEP)
                    *reinterpret_cast<Word*>(to[k] + j * STEP) = v[k][j];
            }
        }
    }

    // Whether the elements of split word j are units of the row. `units` are left from the word's
    // first element on, which a shift puts before unit 0 in the first word of a row; the word past
    // CELLS has one at most.
    __device__ __forceinline__ bool has_low(int shift, int units, int j) const { return units > 0 && (j > 0 || unit >= shift); }
    static __device__ __forceinline__ bool has_high(int units, int j) { return may_be_whole(j) && units > 1; }
    static __device__ __forceinline__ constexpr bool may_be_whole(int j) { return j * STEP < CELLS; }

    // Stores split word j: of a word that is shared with another row only this row's element.
    __device__ __forceinline__ void store_split(P* to, unsigned v, int left, int j) const {
        const int shift = Pieces::shift(to), units = left + shift - j * STEP;
        const bool low = has_low(shift, units, j), high = has_high(units, j);
        P* const word = to - shift + j * STEP;
        if (may_be_whole(j)) store_if(low && high, reinterpret_cast<unsigned*>(word), v);
        store_if(low && !high, reinterpret_cast<unsigned short*>(word), (unsigned short)v);
        if (j == 0) store_if(high && !low, reinterpret_cast<unsigned short*>(word) + 1, (unsigned short)(v >> 16));
    }
};

// Interleaved gates, from the block's first unit.
template <class P, class E> __device__ __forceinline__ Tensor<P> all_gates(const Gates<E>& gates, const Sizes& sizes, Offset place) {
    return {reinterpret_cast<P*>(gates.external) + place, sizes.units()};
}

// The tensor of a gate, in the pair of tensors that hold those with and those without external
// input.
template <class P> __device__ __forceinline__ Tensor<P> gate_tensor(const Gates<P>& gates, const Sizes& sizes, int gate, Offset place) {
    const int of_token = gate < INNER ? INNER : Cell::EXTERNAL;
    return {&gates.at(sizes, 0, gate, place), of_token * sizes.units()};
}
