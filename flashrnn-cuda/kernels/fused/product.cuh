// The arithmetic of the fused kernels: tensor cores for 16-bit tensors, multiply-adds for f32. Both
// headers define the same functions and structs, and assign units and rows to the same lanes.
#pragma once
#if TENSOR_CORES
#include "fused/tensor_cores.cuh"
#else
#include "fused/multiply_add.cuh"
#endif
