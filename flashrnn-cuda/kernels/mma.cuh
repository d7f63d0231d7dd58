// The tensor cores' m16n8k16 for 16-bit tensors.
//
// In an 8 x 8 matrix, lane l holds columns 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
#pragma once
#include "element.cuh"

constexpr bool IS_BF16 = T_IS_BF16;

// Adds the product of a (16 x 16) and b (16 x 8) to d.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
#define FLASHRNN_MMA(type)                                                         \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "             \
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                    \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
    if constexpr (IS_BF16)
        FLASHRNN_MMA("bf16");
    else
        FLASHRNN_MMA("f16");
#undef FLASHRNN_MMA
}
