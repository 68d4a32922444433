// roofline.cu: what this device can do at most, measured: copying in device memory, and multiplying on tensor cores.
//   copy: y = x, 16 bytes a thread and turn; traffic 2 * len bytes.
//   mma:  acc += A B on registers alone, 8 independent m16n8k16 products a warp and turn: 8 * 4096 FLOP.
// Grid: x over threads (copy: any number, grid-stride; mma: enough blocks to fill the device). Source: our own.
#include "common.cuh"

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
