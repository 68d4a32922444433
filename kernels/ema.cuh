// ema.cuh: one element of the moving average of parameters, for ema.cu and for the update that makes it on its way
// (adamw.cu).
#pragma once

#include "lang/common.cuh"

constexpr int kEma = 3;  // place of the weight in the scalars, as in src/ops/adamw.rs

// avg + w (p - avg); w = 1 copies exactly, w = 0 leaves the average as it is, whatever p is.
__device__ __forceinline__ float moved_average(float average, float param, float w) {
    if (w == 0.0f) return average;
    return w == 1.0f ? param : average + w * (param - average);
}
