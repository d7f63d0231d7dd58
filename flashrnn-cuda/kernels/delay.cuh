// Random delays for tests.
#pragma once

// With DELAYS, a warp sometimes waits here for up to a microsecond. Tests compare results with and
// without delays, because results must not depend on warp scheduling.
__device__ __forceinline__ void delay() {
#if DELAYS
    const unsigned warp = blockIdx.x * 2654435761u ^ threadIdx.x / 32 * 40503u;
    const unsigned hash = (unsigned(clock64()) ^ warp) * 2246822519u;
    if (hash >> 29 == 0) __nanosleep(hash >> 19 & 1023);
#endif
}
