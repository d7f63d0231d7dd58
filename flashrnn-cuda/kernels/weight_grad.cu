// Kernels that pack R and b before the time loops, and that add the parts of d_r and d_b after
// them.
#include "element.cuh"

using W = WEIGHT;

// Packs r [Gr, N, D_out, D_in] as [Gr, N, D_out, depth] for the forward pass and transposed, as
// [N, D_in, Gr, depth], for the backward pass, both padded with zeros. Copies b [G, N, D] to f32.
// Each block has 256 threads and transposes tiles of 32 x 32 of (k, m) in shared memory, so that
// the reads and both writes are contiguous.
extern "C" __global__ void pack(const W* r, const W* b, T* forward, T* backward, float* bias,
                                int recurrent, int heads, int head_dim, int depth,
                                Offset bias_len) {
    __shared__ float tile[32][33];
    const int column = threadIdx.x % 32, line = threadIdx.x / 32;
    for (Offset i = Offset(blockIdx.x) * blockDim.x + threadIdx.x; i < bias_len;
         i += Offset(gridDim.x) * blockDim.x)
        bias[i] = widen(b[i]);

    const Offset tiles = (depth + 31) / 32;
    const Offset blocks = Offset(recurrent) * heads * tiles * tiles;
    for (Offset block = blockIdx.x; block < blocks; block += gridDim.x) {
        const int k0 = int(block % tiles) * 32, m0 = int(block / tiles % tiles) * 32;
        const Offset matrix = block / tiles / tiles;  // gate * heads + head
        const int gate = int(matrix / heads), head = int(matrix % heads);
        __syncthreads();
        for (int y = line; y < 32; y += 8) {
            const int m = m0 + y, k = k0 + column;
            const bool exists = m < head_dim && k < head_dim;
            const float value = exists ? widen(r[(matrix * head_dim + m) * head_dim + k]) : 0.0f;
            tile[y][column] = value;
            if (m < head_dim && k < depth)
                narrow(value, forward[(matrix * head_dim + m) * depth + k]);
        }
        __syncthreads();
        for (int y = line; y < 32; y += 8) {
            const int d_in = k0 + y, d_out = m0 + column;
            if (d_in < head_dim && d_out < depth)
                narrow(tile[column][y], backward[((Offset(head) * head_dim + d_in) * recurrent +
                                                  gate) * depth + d_out]);
        }
    }
}

// Sums partial [parts, rows, stride] over its parts, in order, into out [rows, length]. If
// `accumulate` is set, adds the sums to the existing contents of out.
extern "C" __global__ void reduce(const float* partial, int parts, Offset rows, Offset length,
                                  Offset stride, W* out, int accumulate) {
    for (Offset i = Offset(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * length;
         i += Offset(gridDim.x) * blockDim.x) {
        const Offset at = i / length * stride + i % length;
        float sum = accumulate ? widen(out[i]) : 0.0f;
        for (int part = 0; part < parts; ++part) sum += partial[part * rows * stride + at];
        narrow(sum, out[i]);
    }
}

// One operand of a batched product: the address of its first matrix, and the bytes between parts,
// gates and heads.
struct Operand {
    char* first;
    Offset part, gate, head;
};

// Computes the addresses of the matrices of a batched product, out [3, parts, gates, heads]. There
// is one thread per product.
extern "C" __global__ void addresses(Operand a, Operand b, Operand c, int parts, int gates,
                                     int heads, char** out) {
    const Offset i = Offset(blockIdx.x) * blockDim.x + threadIdx.x;
    const Offset batch = Offset(parts) * gates * heads;
    if (i >= batch) return;
    const Offset head = i % heads, gate = i / heads % gates, part = i / heads / gates;
    const auto at = [=](const Operand& of) {
        return of.first + part * of.part + gate * of.gate + head * of.head;
    };
    out[i] = at(a);
    out[batch + i] = at(b);
    out[2 * batch + i] = at(c);
}
