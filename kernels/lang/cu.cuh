// cu.cuh: the language our kernels are written in. One source, two builds:
//   nvcc        the CUDA toolkit's own types and builtins;
//   any other   emulator/device.h, which runs the same source on the CPU (see emulator/README.md).
//
// A kernel file uses only what is declared here, in ptx.cuh and in common.cuh:
//   KERNEL(name, Params, threads, min_blocks) { ... p.x ... }   entry; one by-value parameter struct, called p
//   SHARED_ARRAY(T, name, count)                                static shared array
//   DYNAMIC_SHARED(name, bytes)                                 unsigned char* to dynamic shared memory, 1024-aligned;
//                                                               the emulator refuses a launch that gives another size
//   EXTERN_SHARED(name)                                         the same, of whatever size the launch gives
//   global_load(const T*), global_store(T*, T)                  every access to global memory (the emulator counts and
//                                                               checks them)
//   bf16, to_float, to_bf16, pack_bf16, unpack_bf16
// Rules the emulator relies on: full warp masks; no plain __shared__; no waiting on other blocks;
// __syncwarp wherever lanes exchange data through shared memory; block size a multiple of 32.
#pragma once

#ifdef __CUDACC__

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define KERNEL(name, Params, threads, min_blocks)                           \
    static_assert((threads) % 32 == 0 && (threads) <= 1024, "whole warps"); \
    static_assert(sizeof(Params) <= 4096, "parameters of one launch");      \
    extern "C" __global__ void __launch_bounds__(threads, min_blocks) name(const __grid_constant__ Params p)

#define SHARED_ARRAY(T, name, count) __shared__ T name[count]

// One symbol for all kernels of a file: dynamic shared memory is one region of bytes.
extern __shared__ __align__(1024) unsigned char dynamic_shared[];
#define EXTERN_SHARED(name) unsigned char* const name = dynamic_shared
#define DYNAMIC_SHARED(name, bytes) EXTERN_SHARED(name)

using bf16 = __nv_bfloat16;

// The compiler chooses LDG itself. If ld.global.nc should ever pay, it goes here; it would then have
// to be limited to data that no thread writes in the same launch.
template <class T> __device__ __forceinline__ T global_load(const T* p) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16,
                  "one memory instruction");
    static_assert(alignof(T) == sizeof(T), "use float4, uint4, ...: types aligned to their size");
    return *p;
}

template <class T> __device__ __forceinline__ void global_store(T* p, T v) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16,
                  "one memory instruction");
    static_assert(alignof(T) == sizeof(T), "use float4, uint4, ...: types aligned to their size");
    *p = v;
}

__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ bf16 to_bf16(float v) { return __float2bfloat16_rn(v); }

// Two bf16 in one register, the first in the low half; round to nearest even.
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
#ifdef __CUDA_ARCH__
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
    return out;
#else
    return 0;
#endif
}

__device__ __forceinline__ void unpack_bf16(uint32_t v, float& lo, float& hi) {
    lo = __uint_as_float(v << 16);
    hi = __uint_as_float(v & 0xffff0000u);
}

#else

#include "emulator/device.h"

#endif
