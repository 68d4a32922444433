// roofline.cu: what this device can do at most, measured: copying in device memory, and multiplying on tensor cores.
//   copy: y = x, 16 bytes a thread and turn; traffic 2 * len bytes.
//   mma:   acc += A B on registers alone, 8 independent m16n8k16 products a warp and turn: 8 * 4096 FLOP.
//   wgmma: the same with operands in shared memory, 8 products m64n128k16 a block and turn: 8 * 262,144 FLOP. On sm_90a
//   only.
// Grid: x over threads (copy: any number, grid-stride; mma and wgmma: enough blocks to fill the device).
// Source: our own; wgmma after the PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
#include "lang/common.cuh"

struct RooflineCopyParams {
    const uint4* x;
    uint4* y;
    long long len;  // in units of 16 bytes
};

KERNEL(roofline_copy, RooflineCopyParams, 256, 4) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < p.len; i += stride) {
        global_store(p.y + i, global_load(p.x + i));
    }
}

struct RooflineMmaParams {
    float* out;  // one float per thread, so that nothing is optimised away
    long long turns;
};

KERNEL(roofline_mma_bf16, RooflineMmaParams, 256, 2) {
    constexpr int kM = 2, kN = 4;
    float acc[kM][kN][4] = {};
    uint32_t a[kM][4], b[kN][2];
    const float seed = 1.0f + threadIdx.x * 0.0009765625f;
    for (int m = 0; m < kM; ++m)
        for (int i = 0; i < 4; ++i) a[m][i] = pack_bf16(seed, -seed);
    for (int n = 0; n < kN; ++n)
        for (int i = 0; i < 2; ++i) b[n][i] = pack_bf16(seed, seed);
    for (long long turn = 0; turn < p.turns; ++turn) mma_bf16<kM, kN>(acc, a, b);
    float sum = 0.0f;
    for (int m = 0; m < kM; ++m)
        for (int n = 0; n < kN; ++n)
            for (int i = 0; i < 4; ++i) sum += acc[m][n][i];
    global_store(p.out + (long long)blockIdx.x * blockDim.x + threadIdx.x, sum);
}

// wgmma exists on sm_90a alone: elsewhere, the emulated device included, there is no such kernel, and a program that
// asks for it is told so.
// No kernel of the product uses wgmma; this one says what the device could do.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

struct RooflineWgmmaParams {
    float* out;  // one float per thread: 2048 * turns
    long long turns;
};

// Descriptor of an operand in shared memory: not swizzled, k along the rows, core matrices of 8 rows of 16 bytes one
// behind the other:
// 128 bytes from one to the next along k, 256 to the next 8 rows. Exchanged, the two distances would stay within the
// tile.
__device__ __forceinline__ uint64_t wgmma_operand(const void* tile) {
    constexpr uint64_t kAlongK = 128, kAlongRows = 256;
    return ((smem_u32(tile) & 0x3ffff) >> 4) | (kAlongK >> 4) << 16 | (kAlongRows >> 4) << 32;
}

#define WGMMA_ACC8(i)                                                                                       \
    "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3]), "+f"(acc[i + 4]), "+f"(acc[i + 5]), \
        "+f"(acc[i + 6]), "+f"(acc[i + 7])
#define WGMMA(a)                                              \
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" \
    "%0, %1, %2, %3, %4, %5, %6, %7, "                        \
    "%8, %9, %10, %11, %12, %13, %14, %15, "                  \
    "%16, %17, %18, %19, %20, %21, %22, %23, "                \
    "%24, %25, %26, %27, %28, %29, %30, %31, "                \
    "%32, %33, %34, %35, %36, %37, %38, %39, "                \
    "%40, %41, %42, %43, %44, %45, %46, %47, "                \
    "%48, %49, %50, %51, %52, %53, %54, %55, "                \
    "%56, %57, %58, %59, %60, %61, %62, %63}, " a ", %66, add, 1, 1, 0, 0;\n"

// One warpgroup a block. A is all 1 in one tile and all -0.5 in another, B is all 1: where an element lies does not
// matter, each pair of products adds 16 - 8 to every sum, exactly, and whoever launches this can tell that the products
// were made.
KERNEL(roofline_wgmma_bf16, RooflineWgmmaParams, 128, 4) {
    constexpr int kTileA = 64 * 16 / 8, kTileB = 128 * 16 / 8;  // in units of 8 elements, 16 bytes
    SHARED_ARRAY(uint4, tiles, 2 * kTileA + kTileB);
    for (int i = threadIdx.x; i < 2 * kTileA + kTileB; i += blockDim.x) {
        const uint32_t pair = i / kTileA == 1 ? 0xbf00bf00u : 0x3f803f80u;
        tiles[i] = make_uint4(pair, pair, pair, pair);
    }
    // What a thread wrote is to be seen by the asynchronous proxy, by which wgmma reads; then by all threads' writes.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const uint64_t ones = wgmma_operand(tiles), halves = wgmma_operand(tiles + kTileA),
                   b = wgmma_operand(tiles + 2 * kTileA);
    float acc[64] = {};
    for (long long turn = 0; turn < p.turns; ++turn) {
        // In one statement from the fence to the wait: the compiler cannot touch the sums while they are in flight.
        asm volatile(
            "{\n.reg .pred add;\nsetp.ne.b32 add, %67, 0;\n"
            "wgmma.fence.sync.aligned;\n"                        //
            WGMMA("%64") WGMMA("%65") WGMMA("%64") WGMMA("%65")  //
            WGMMA("%64") WGMMA("%65") WGMMA("%64") WGMMA("%65")  //
            "wgmma.commit_group.sync.aligned;\n"
            "wgmma.wait_group.sync.aligned 0;\n}"
            : WGMMA_ACC8(0), WGMMA_ACC8(8), WGMMA_ACC8(16), WGMMA_ACC8(24), WGMMA_ACC8(32), WGMMA_ACC8(40),
              WGMMA_ACC8(48), WGMMA_ACC8(56)
            : "l"(ones), "l"(halves), "l"(b), "r"(1)
            : "memory");
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 64; ++i) sum += acc[i];
    global_store(p.out + (long long)blockIdx.x * blockDim.x + threadIdx.x, sum);
}

#endif
