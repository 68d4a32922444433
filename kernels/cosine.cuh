// cosine.cuh: products of two vectors of channels, by a warp whose lanes take 8 channels at a time (or 1).
#pragma once

#include "lang/vec.cuh"

constexpr float kNormFloor = 1e-8f;

struct Products {
    float dot, a, b;  // a.b, |a|, |b|
};

// By a whole warp; the same in all lanes.
template <int kW> __device__ __forceinline__ Products products(const bf16* a, const bf16* b, int channels) {
    Products sums{0.0f, 0.0f, 0.0f};
    for (int c = lane_id() * kW; c < channels; c += kWarp * kW) {
        float va[kW], vb[kW];
        load(a + c, va);
        load(b + c, vb);
#pragma unroll
        for (int i = 0; i < kW; ++i) {
            sums.dot = fmaf(va[i], vb[i], sums.dot);
            sums.a = fmaf(va[i], va[i], sums.a);
            sums.b = fmaf(vb[i], vb[i], sums.b);
        }
    }
    return {warp_sum(sums.dot), sqrtf(warp_sum(sums.a)), sqrtf(warp_sum(sums.b))};
}
