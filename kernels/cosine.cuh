// cosine.cuh: products of two vectors of channels, by a warp whose lanes take 8 channels at a time (or 1).
#pragma once

#include "lang/common.cuh"
#include "lang/vec.cuh"

constexpr float kNormFloor = 1e-8f;

// kW channels, as floats.
__device__ __forceinline__ void load_channels(const bf16* p, float (&v)[8]) { load_bf16x8(p, v); }
__device__ __forceinline__ void load_channels(const bf16* p, float (&v)[1]) { v[0] = to_float(global_load(p)); }
__device__ __forceinline__ void store_channels(bf16* p, const float (&v)[8]) { store_bf16x8(p, v); }
__device__ __forceinline__ void store_channels(bf16* p, const float (&v)[1]) { global_store(p, to_bf16(v[0])); }

template <int kW> __device__ __forceinline__ void put_channels(bf16* p, float (&v)[kW], bool add) {
    if (add) {
        float old[kW];
        load_channels(p, old);
#pragma unroll
        for (int i = 0; i < kW; ++i) v[i] += old[i];
    }
    store_channels(p, v);
}

struct Products {
    float dot, a, b;  // a.b, |a|, |b|
};

// By a whole warp; the same in all lanes.
template <int kW> __device__ __forceinline__ Products products(const bf16* a, const bf16* b, int channels) {
    Products sums{0.0f, 0.0f, 0.0f};
    for (int c = lane_id() * kW; c < channels; c += kWarp * kW) {
        float va[kW], vb[kW];
        load_channels(a + c, va);
        load_channels(b + c, vb);
#pragma unroll
        for (int i = 0; i < kW; ++i) {
            sums.dot = fmaf(va[i], vb[i], sums.dot);
            sums.a = fmaf(va[i], va[i], sums.a);
            sums.b = fmaf(vb[i], vb[i], sums.b);
        }
    }
    return {warp_sum(sums.dot), sqrtf(warp_sum(sums.a)), sqrtf(warp_sum(sums.b))};
}
