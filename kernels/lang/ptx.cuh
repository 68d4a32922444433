// ptx.cuh: every PTX instruction we use that CUDA C++ has no spelling for. Each wrapper has two bodies: inline
// assembly for the device and the emulator's for the host. tests/conformance.cu compares the two on a GPU.
//
// Shared memory addresses are 32-bit offsets in the block's shared window (smem_u32).
// Fragment layouts (lane l, group g = l / 4, quad q = l % 4), PTX ISA "Matrix Fragments for mma.m16n8k16":
//   A 16x16  a[0]: row g,   k 2q,2q+1    a[1]: row g+8, same k   a[2]: row g, k+8   a[3]: row g+8, k+8
//   B 16x8   b[0]: k 2q,2q+1, column g   b[1]: k+8
//   C 16x8   c[0],c[1]: row g, columns 2q,2q+1    c[2],c[3]: row g+8
#pragma once

#include "cu.cuh"

#if defined(__CUDA_ARCH__)
#define PTX_DEVICE 1  // device pass of nvcc
#elif !defined(__CUDACC__)
#define PTX_EMULATED 1  // host build
#endif                  // host pass of nvcc: neither, the bodies stay empty

__device__ __forceinline__ uint32_t smem_u32(const void* p) {
#if defined(PTX_DEVICE)
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#elif defined(PTX_EMULATED)
    return emu::shared_offset(p);
#else
    return 0;
#endif
}

// threadIdx.x and blockIdx.z, read anew: what follows from them is computed where it is needed, and takes no register
// before.
__device__ __forceinline__ int thread_anew() {
#if defined(PTX_DEVICE)
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
#else
    return static_cast<int>(threadIdx.x);
#endif
}

__device__ __forceinline__ int block_z_anew() {
#if defined(PTX_DEVICE)
    int block;
    asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(block));
    return block;
#else
    return static_cast<int>(blockIdx.z);
#endif
}

// Copies 16 bytes from global to shared memory without registers; writes zeros if !valid. `global` is not read
// then, but must still be a valid, 16-byte aligned address.
__device__ __forceinline__ void cp_async16(uint32_t smem, const void* global, bool valid) {
#if defined(PTX_DEVICE)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(__cvta_generic_to_global(global)),
                 "r"(valid ? 16 : 0)
                 : "memory");
#elif defined(PTX_EMULATED)
    emu::cp_async(smem, global, 16, valid ? 16 : 0);
#endif
}

// The same for 4 or 8 bytes (data that is not 16-byte aligned; goes through L1).
template <int kBytes> __device__ __forceinline__ void cp_async_small(uint32_t smem, const void* global, bool valid) {
    static_assert(kBytes == 4 || kBytes == 8, "cp.async.ca sizes; 16 is cp_async16");
#if defined(PTX_DEVICE)
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(smem), "l"(__cvta_generic_to_global(global)),
                 "n"(kBytes), "r"(valid ? kBytes : 0)
                 : "memory");
#elif defined(PTX_EMULATED)
    emu::cp_async(smem, global, kBytes, valid ? kBytes : 0);
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if defined(PTX_DEVICE)
    asm volatile("cp.async.commit_group;" ::: "memory");
#elif defined(PTX_EMULATED)
    emu::cp_async_commit();
#endif
}

// Waits until at most kPending of this thread's committed groups are unfinished. Other threads see the data only
// after a barrier.
template <int kPending> __device__ __forceinline__ void cp_async_wait() {
#if defined(PTX_DEVICE)
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#elif defined(PTX_EMULATED)
    emu::cp_async_wait(kPending);
#endif
}

// Loads four 8x8 matrices of 16-bit elements. Lane l gives the 16-byte aligned address of row l % 8 of matrix
// l / 8; r[i] receives row g, elements 2q and 2q+1 of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t smem) {
#if defined(PTX_DEVICE)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem)
                 : "memory");
#elif defined(PTX_EMULATED)
    emu::ldmatrix<4, false>(r, smem);
#endif
}

// The same with each matrix transposed: r[i] receives elements (row 2q, column g) and (row 2q+1, column g).
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t smem) {
#if defined(PTX_DEVICE)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem)
                 : "memory");
#elif defined(PTX_EMULATED)
    emu::ldmatrix<4, true>(r, smem);
#endif
}

// Two matrices: the addresses of lanes 0-15 count.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], uint32_t smem) {
#if defined(PTX_DEVICE)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem)
                 : "memory");
#elif defined(PTX_EMULATED)
    emu::ldmatrix<2, false>(r, smem);
#endif
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t smem) {
#if defined(PTX_DEVICE)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem)
                 : "memory");
#elif defined(PTX_EMULATED)
    emu::ldmatrix<2, true>(r, smem);
#endif
}

// Warp tile of kM x kN mma.m16n8k16 (bf16 in, f32 accumulate): acc[m][n] += a[m] * b[n]. A loop of instructions on
// the device, one rendezvous of the warp in the emulator, which is why it takes the whole tile.
template <int kM, int kN>
__device__ __forceinline__ void mma_bf16(float (&acc)[kM][kN][4], const uint32_t (&a)[kM][4],
                                         const uint32_t (&b)[kN][2]) {
#if defined(PTX_DEVICE)
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
            float (&c)[4] = acc[m][n];
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                "{%8, %9}, {%0, %1, %2, %3};"
                : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                : "r"(a[m][0]), "r"(a[m][1]), "r"(a[m][2]), "r"(a[m][3]), "r"(b[n][0]), "r"(b[n][1]));
        }
    }
#elif defined(PTX_EMULATED)
    emu::mma_bf16(&acc[0][0][0], &a[0][0], &b[0][0], kM, kN);
#endif
}
