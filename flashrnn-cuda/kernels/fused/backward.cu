// The backward pass of all time steps in one kernel. R transposed stays in registers; dg and the
// partial sums of dh are in shared memory.
//
// The grid is the same as in fused/forward.cu: a cluster of BLOCKS blocks owns one head and ROWS
// batch rows, and each block owns UNITS units of the head. In each round a block
//
//   1. sums the PARTIALS partial sums of its units' dh,
//   2. computes dg of its units with the cell's derivative (`linearize` has already computed the
//      part that does not depend on dh),
//   3. multiplies dg by its columns of R transposed, and
//   4. sends each block of the cluster the partial sums of that block's dh (a reduce-scatter).
//
// Compute warps do this (backward_compute.cuh), while IO warps prefetch the inputs and store dg
// (backward_io.cuh). `Shared` is in backward_shared.cuh.
#include "fused/backward_compute.cuh"
#include "fused/backward_io.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    fused_backward(const __grid_constant__ BackwardCall call) {
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const Block block(call.sizes);
    // Zeros for missing rows, units and k, and for dh of the last step.
    for (int i = threadIdx.x; i < int(sizeof(Shared) / 4); i += THREADS)
        reinterpret_cast<unsigned*>(memory)[i] = 0;
    if constexpr (BLOCKS > 1) __syncthreads();  // before one thread initialises the barriers
    open_exchange(shared);
    if (threadIdx.x < COMPUTE_THREADS)
        compute(call, block, shared);
    else
        load_store(call, block, shared);
    close_exchange();
}
