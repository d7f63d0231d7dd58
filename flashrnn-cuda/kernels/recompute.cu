// Kernels of the backward pass that process all tokens at once, outside its time loop. They compute
// h before each step, the gates if they were not saved, and the operands of the weight gradients.
#include "operator.cuh"

// 16 bytes of a row.
struct alignas(16) Vector {
    static constexpr int LENGTH = 16 / sizeof(T);
    T of[LENGTH];
};

// Loads a vector from any address, by 16 or 4 bytes if it is aligned to them, else by element.
// Reads only the first `count` elements and sets the others to 0.
__device__ __forceinline__ Vector load_vector(const T* from, int count) {
    const size_t address = reinterpret_cast<size_t>(from);
    if (count >= Vector::LENGTH && address % sizeof(Vector) == 0)
        return *reinterpret_cast<const Vector*>(from);
    Vector v;
    if (count >= Vector::LENGTH && address % sizeof(unsigned) == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            reinterpret_cast<unsigned*>(&v)[i] = reinterpret_cast<const unsigned*>(from)[i];
        return v;
    }
#pragma unroll
    for (int i = 0; i < Vector::LENGTH; ++i) v.of[i] = i < count ? from[i] : rounded<T>(0.0f);
    return v;
}

// Gathers h before every step, as the forward product read it, into out [tokens, N, depth]. It is
// zero after a reset, beyond a row's length, and where k pads D. `s0` may be null. There is one
// warp per token, and each lane writes 16 bytes at a time.
extern "C" __global__ void previous_h(Sizes sizes, const T* h, const float* s0, const int* lengths,
                                      const unsigned char* resets, T* out) {
    // 32 bits suffice to count the vectors of a token, because 2^32 vectors are 64 GiB.
    const unsigned head_vectors = sizes.depth / Vector::LENGTH;
    const unsigned token_vectors = sizes.heads * head_vectors;
    const int warps = blockDim.x / 32;
    for (Offset token = Offset(blockIdx.x) * warps + threadIdx.x / 32; token < sizes.tokens();
         token += Offset(gridDim.x) * warps) {
        const int row_index = int(sizes.time_major ? token % sizes.batch : token / sizes.time);
        const int position = int(sizes.time_major ? token / sizes.batch : token % sizes.time);
        const Row row(sizes, lengths, row_index);
        const int step =
            sizes.reverse && position < row.length ? row.length - 1 - position : position;
        const bool kept = row.active(step) && !row.reset(sizes, resets, step);
        const T* before =
            kept && step > 0 ? h + row.token(sizes, step - 1) * sizes.units() : nullptr;
        const float* first = kept && step == 0 && s0 ? s0 + row_index * sizes.units() : nullptr;
        Vector* to = reinterpret_cast<Vector*>(out) + token * token_vectors;
        for (unsigned i = threadIdx.x % 32; i < token_vectors; i += 32) {
            const int k = i % head_vectors * Vector::LENGTH;
            const Offset unit = Offset(i / head_vectors) * sizes.head_dim + k;
            if (before) {
                to[i] = load_vector(before + unit, sizes.head_dim - k);
                continue;
            }
            Vector v;
#pragma unroll
            for (int j = 0; j < Vector::LENGTH; ++j)
                v.of[j] = saturated<T>(first && k + j < sizes.head_dim ? first[unit + j] : 0.0f);
            to[i] = v;
        }
    }
}

// Pads `count` rows of D elements with zeros to `depth`, so that each is aligned to 16 bytes. A
// power of 2 of lanes, up to 32, copies a row; each lane writes 16 bytes at a time.
extern "C" __global__ void pad(const T* rows, Offset count, int head_dim, int depth, T* out) {
    const int vectors = depth / Vector::LENGTH;
    int log_lanes = 0;
    while (log_lanes < 5 && 1 << log_lanes < vectors) ++log_lanes;
    const Offset thread = Offset(blockIdx.x) * blockDim.x + threadIdx.x;
    const Offset threads = Offset(gridDim.x) * blockDim.x;
    for (Offset row = thread >> log_lanes; row < count; row += threads >> log_lanes) {
        const T* from = rows + row * head_dim;
        Vector* to = reinterpret_cast<Vector*>(out + row * depth);
        for (int i = int(thread) & ((1 << log_lanes) - 1); i < vectors; i += 1 << log_lanes)
            to[i] = load_vector(from + i * Vector::LENGTH, head_dim - i * Vector::LENGTH);
    }
}

// Recomputes the gates of `count` tokens as g = x_t + b + R h, added in the order of the forward
// pass. products [count, Gr, N, depth] holds R h. Wide gates are also written to `wide_gates`.
// There is one thread per unit of a token.
extern "C" __global__ void recompute_gates(Sizes sizes, Offset first_token, Offset count,
                                           const float* products, const T* wx, const float* b,
                                           Gates<T> gates, float* wide_gates) {
    const Offset units = sizes.units(), len = count * units;
    for (Offset i = Offset(blockIdx.x) * blockDim.x + threadIdx.x; i < len;
         i += Offset(gridDim.x) * blockDim.x) {
        const Offset token = first_token + i / units, unit = i % units;
        const Offset head = unit / sizes.head_dim, k = unit % sizes.head_dim;
        const float* product =
            products + (i / units * Cell::RECURRENT * sizes.heads + head) * sizes.depth + k;
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate) {
            float value = b[gate * units + unit];
            if (gate >= INNER)
                value += widen(wx[(token * Cell::EXTERNAL + gate - INNER) * units + unit]);
            if (gate < Cell::RECURRENT) value += product[Offset(gate) * sizes.heads * sizes.depth];
            saturate(value, gates.at(sizes, token, gate, unit));
            if (kept_wide(Cell::WIDE_GATES, gate)) {
                const Offset tensor = rank(Cell::WIDE_GATES, gate) * sizes.tokens();
                wide_gates[(tensor + token) * units + unit] = value;
            }
        }
    }
}

// Sums the columns of `rows` [count, columns] for d_b. Each part of `rows_per_part` rows has its
// own sum in partial [parts, partial_stride]. There is one thread per column and part.
extern "C" __global__ void column_sums(const T* rows, Offset count, Offset columns,
                                       Offset rows_per_part, float* partial,
                                       Offset partial_stride) {
    const Offset column = Offset(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    const Offset first = blockIdx.y * rows_per_part;
    const Offset end = ::min(first + rows_per_part, count);
    float sum = 0.0f;
    for (Offset row = first; row < end; ++row) sum += widen(rows[row * columns + column]);
    partial[blockIdx.y * partial_stride + column] = sum;
}
