// gelu.cuh: exact GELU of one element, for gelu.cu and for the convolutions that make it on their way
// (conv3d/igemm.cuh).
#pragma once

#include "lang/common.cuh"

constexpr float kInvSqrt2 = 0.70710678118654752f;

// x / 2 (1 + erf(x / sqrt 2))
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * kInvSqrt2)); }

// Of an element as it is stored.
__device__ __forceinline__ bf16 gelu(bf16 x) { return to_bf16(gelu(to_float(x))); }

// Of eight.
__device__ __forceinline__ uint4 gelu_bf16x8(uint4 x) {
    float v[8];
    unpack_bf16x8(x, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = gelu(v[i]);
    return pack_bf16x8(v);
}
