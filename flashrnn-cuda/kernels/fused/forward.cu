// The forward pass of all time steps in one kernel. R stays in registers, h in shared memory.
//
// A cluster of BLOCKS blocks owns one head and ROWS batch rows, and each block owns UNITS units of
// the head. The blocks of a cluster exchange h in every step. Clusters never wait for each other.
//
// Compute warps run the product and the cell (forward_compute.cuh), while IO warps prefetch wx and
// store the results (forward_io.cuh). `Shared` is in forward_shared.cuh.
#include "fused/forward_compute.cuh"
#include "fused/forward_io.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    fused_forward(const __grid_constant__ ForwardCall call) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const Sizes& sizes = call.sizes;
    const Block block(sizes);

    // h of the whole head before the first step, and zeros for missing rows and units.
    for (int i = threadIdx.x; i < 2 * ROWS * H_STRIDE; i += THREADS) {
        const int buffer = i / (ROWS * H_STRIDE), row = i / H_STRIDE % ROWS, unit = i % H_STRIDE;
        const bool exists = buffer == 0 && call.s0 && row < block.rows && unit < HEAD_DIM;
        const Offset at =
            Offset(block.row0 + row) * sizes.units() + Offset(block.head) * HEAD_DIM + unit;
        shared.h[buffer][row][unit] = saturated<T>(exists ? call.s0[at] : 0.0f);
    }
    for (int i = threadIdx.x; i < int(sizeof(shared.x) / sizeof(unsigned)); i += THREADS)
        reinterpret_cast<unsigned*>(shared.x)[i] = 0;

    open_exchange(shared);
    if (threadIdx.x < COMPUTE_THREADS)
        compute(call, block, shared);
    else
        load_store(call, block, shared);
    close_exchange();
}
