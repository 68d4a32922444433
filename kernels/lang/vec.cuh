// vec.cuh: tensors kW elements at a time: kW = 8, 128-bit accesses, or kW = 1, any length and alignment.
#pragma once

#include "common.cuh"

// kW elements of bf16 as they lie in memory: loads can be issued together before any is used.
template <int kW> struct RawType;
template <> struct RawType<8> {
    using Type = uint4;
};
template <> struct RawType<1> {
    using Type = bf16;
};
template <int kW> using Raw = typename RawType<kW>::Type;

template <int kW> __device__ __forceinline__ Raw<kW> load_raw(const bf16* p) {
    return global_load(reinterpret_cast<const Raw<kW>*>(p));
}

__device__ __forceinline__ void unpack(uint4 raw, float (&v)[8]) { unpack_bf16x8(raw, v); }
__device__ __forceinline__ void unpack(bf16 raw, float (&v)[1]) { v[0] = to_float(raw); }

template <int kW> __device__ __forceinline__ void load(const bf16* p, float (&v)[kW]) { unpack(load_raw<kW>(p), v); }

__device__ __forceinline__ void load(const float* p, float (&v)[1]) { v[0] = global_load(p); }
__device__ __forceinline__ void load(const float* p, float (&v)[8]) {
    const float4 a = global_load(reinterpret_cast<const float4*>(p));
    const float4 b = global_load(reinterpret_cast<const float4*>(p + 4));
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ __forceinline__ void store(bf16* p, const float (&v)[8]) { store_bf16x8(p, v); }
__device__ __forceinline__ void store(bf16* p, const float (&v)[1]) { global_store(p, to_bf16(v[0])); }
__device__ __forceinline__ void store(float* p, const float (&v)[1]) { global_store(p, v[0]); }
__device__ __forceinline__ void store(float* p, const float (&v)[8]) {
    global_store(reinterpret_cast<float4*>(p), make_float4(v[0], v[1], v[2], v[3]));
    global_store(reinterpret_cast<float4*>(p + 4), make_float4(v[4], v[5], v[6], v[7]));
}

// out = v, or out += v.
template <int kW, class T> __device__ __forceinline__ void put(T* p, float (&v)[kW], bool add) {
    if (add) {
        float old[kW];
        load(p, old);
#pragma unroll
        for (int i = 0; i < kW; ++i) v[i] += old[i];
    }
    store(p, v);
}

// Whether all addresses allow 128-bit accesses; a null pointer does.
template <class... Pointers> __device__ __forceinline__ bool aligned16(const Pointers*... p) {
    return ((reinterpret_cast<uintptr_t>(p) | ...) & 15u) == 0;
}

template <int kW> struct Width {
    static constexpr int value = kW;
};

// f(Width<kW>, first) for pieces that cover [0, len), by all threads of a one-dimensional grid: pieces of 8 if `wide`,
// and what is left one by one.
template <class F> __device__ __forceinline__ void for_each_piece(long long len, bool wide, F f) {
    const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
    const long long pieces = wide ? len / 8 : 0;
    for (long long i = first; i < pieces; i += step) f(Width<8>{}, 8 * i);
    for (long long i = 8 * pieces + first; i < len; i += step) f(Width<1>{}, i);
}

// Quotient and remainder of numbers >= 0; a 64-bit division, several times slower, only where it is needed.
struct Quotient {
    long long quotient, remainder;
};
__device__ __forceinline__ Quotient divide(long long a, long long b) {
    if (((a | b) >> 32) == 0) {
        const uint32_t q = static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
        return {q, static_cast<uint32_t>(a) - q * static_cast<uint32_t>(b)};
    }
    return {a / b, a % b};
}

// Threads of a block stand in rows of `tile`. Combines v over the rows by a tree whose shape depends on `rows` alone:
// row 0 holds the result. `combine(v, other)` adds `other`. All threads of the block must call it; `scratch` holds kN
// floats for each.
template <int kThreads, int kN, class Combine>
__device__ __forceinline__ void reduce_rows(float (&v)[kN], int row, int rows, int tile, float* scratch,
                                            Combine combine) {
    int half = 1;
    while (2 * half < rows) half *= 2;
    const int self = static_cast<int>(threadIdx.x);
    for (; half >= 1 && rows > 1; half /= 2) {
        if (row >= half && row < 2 * half) {
#pragma unroll
            for (int i = 0; i < kN; ++i) scratch[i * kThreads + self] = v[i];
        }
        __syncthreads();
        if (row < half && row + half < rows) {
            float other[kN];
#pragma unroll
            for (int i = 0; i < kN; ++i) other[i] = scratch[i * kThreads + self + half * tile];
            combine(v, other);
        }
    }
}

struct Add {
    template <int kN> __device__ __forceinline__ void operator()(float (&v)[kN], const float (&other)[kN]) const {
#pragma unroll
        for (int i = 0; i < kN; ++i) v[i] += other[i];
    }
};

// Sum of squares of kW floats in f64: squares and their sum in f32, unless that over- or underflows there. NaN and
// infinity stay what they are.
template <int kW> __device__ __forceinline__ double sum_of_squares(const float (&v)[kW]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kW; ++i) sum = fmaf(v[i], v[i], sum);
    if (sum >= 1e-24f && sum <= 1e38f) return static_cast<double>(sum);
    double exact = 0.0;
#pragma unroll
    for (int i = 0; i < kW; ++i) exact += static_cast<double>(v[i]) * static_cast<double>(v[i]);
    return exact;
}

// Sum over the block in thread 0: each warp's lanes in a tree, then the warps in order.
template <int kThreads> __device__ __forceinline__ double block_sum_f64(double v) {
    SHARED_ARRAY(double, warps, kThreads / kWarp);
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kFullMask, v, step);
    if (lane_id() == 0) warps[warp_id()] = v;
    __syncthreads();
    double total = 0.0;
#pragma unroll
    for (int w = 0; w < kThreads / kWarp; ++w) total += warps[w];
    __syncthreads();  // `warps` may be written again by the next call
    return total;
}
