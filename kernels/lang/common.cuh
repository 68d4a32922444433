// common.cuh: what several kernels share. Reductions add in an order that depends on the block size only, so two
// runs give equal bits.
#pragma once

#include "cu.cuh"
#include "ptx.cuh"

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kWarp = 32;

template <class T> __host__ __device__ constexpr T ceil_div(T a, T b) { return (a + b - 1) / b; }

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

// Sum over the warp, in every lane. The butterfly gives all lanes the same bits: each step adds the same two numbers.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kFullMask, v, step);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(kFullMask, v, step));
    return v;
}

// out = v, or out += v.
__device__ __forceinline__ void set_or_add(float* out, float v, bool add) {
    global_store(out, add ? global_load(out) + v : v);
}

// Sums over the block of kValues numbers at once, in every thread. All threads of the block must call it.
template <int kThreads, int kValues> __device__ __forceinline__ void block_sum(float (&v)[kValues]) {
    constexpr int kWarps = kThreads / kWarp;
    SHARED_ARRAY(float, partial, kWarps* kValues);
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
        v[i] = warp_sum(v[i]);
        if (lane_id() == 0) partial[i * kWarps + warp_id()] = v[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total += partial[i * kWarps + w];
        v[i] = total;
    }
    __syncthreads();  // `partial` may be written again by the next call
}

template <int kThreads> __device__ __forceinline__ float block_sum(float v) {
    float values[1] = {v};
    block_sum<kThreads, 1>(values);
    return values[0];
}

// Eight bf16 (16 bytes, 16-byte aligned) as floats.
__device__ __forceinline__ void unpack_bf16x8(uint4 v, float (&out)[8]) {
    unpack_bf16(v.x, out[0], out[1]);
    unpack_bf16(v.y, out[2], out[3]);
    unpack_bf16(v.z, out[4], out[5]);
    unpack_bf16(v.w, out[6], out[7]);
}

__device__ __forceinline__ uint4 pack_bf16x8(const float (&v)[8]) {
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

__device__ __forceinline__ void load_bf16x8(const bf16* p, float (&out)[8]) {
    unpack_bf16x8(global_load(reinterpret_cast<const uint4*>(p)), out);
}

__device__ __forceinline__ void store_bf16x8(bf16* p, const float (&v)[8]) {
    global_store(reinterpret_cast<uint4*>(p), pack_bf16x8(v));
}
