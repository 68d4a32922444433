// kernels.cu: kernels that show one property of the emulated device each. Those named broken_* are wrong on purpose;
// the repaired one of the same name without broken_ must pass.
#include "../../kernels/lang/common.cuh"

struct PairParams {
    const float* x;
    float* y;
    long long len;
};

KERNEL(t_scale, PairParams, 64, 1) {  // y = 2 x
    const long long i = static_cast<long long>(blockIdx.x) * 64 + threadIdx.x;
    if (i < p.len) global_store(p.y + i, 2.0f * global_load(p.x + i));
}

KERNEL(t_add_one, PairParams, 64, 1) {  // y += 1
    const long long i = static_cast<long long>(blockIdx.x) * 64 + threadIdx.x;
    if (i < p.len) global_store(p.y + i, 1.0f + global_load(p.y + i));
}

KERNEL(t_warp, PairParams, 64, 1) {  // every warp operation, 16 results a thread
    const int lane = lane_id();
    const float v = global_load(p.x + threadIdx.x);
    float* y = p.y + threadIdx.x * 16;
    global_store(y + 0, __shfl_xor_sync(kFullMask, v, 5));
    global_store(y + 1, __shfl_down_sync(kFullMask, v, 3));
    global_store(y + 2, __shfl_up_sync(kFullMask, v, 3));
    global_store(y + 3, __shfl_sync(kFullMask, v, (lane * 7) % 32));
    global_store(y + 4, __shfl_down_sync(kFullMask, v, 3, 8));
    global_store(y + 5, __shfl_up_sync(kFullMask, v, 3, 8));
    global_store(y + 6, __shfl_sync(kFullMask, v, 9, 8));
    global_store(y + 7, __shfl_xor_sync(kFullMask, v, 16, 8));
    global_store(y + 8, static_cast<float>(__popc(__ballot_sync(kFullMask, lane % 3 == 0))));
    global_store(y + 9, __any_sync(kFullMask, lane == 31) ? 1.0f : 0.0f);
    global_store(y + 10, __all_sync(kFullMask, lane < 31) ? 1.0f : 0.0f);
    global_store(y + 11, warp_sum(v));
    global_store(y + 12, block_sum<64>(v));
    global_store(y + 13, warp_max(v));
    global_store(y + 14, static_cast<float>(threadIdx.x + blockDim.x));
    global_store(y + 15, static_cast<float>(gridDim.x * 100 + blockIdx.x));
}

// Reverses 256 numbers through shared memory.
template <bool kBarrier> __device__ __forceinline__ void reverse(const PairParams& p) {
    SHARED_ARRAY(float, tile, 256);
    tile[threadIdx.x] = global_load(p.x + threadIdx.x);
    if (kBarrier) __syncthreads();
    global_store(p.y + threadIdx.x, tile[255 - threadIdx.x]);
}
KERNEL(t_reverse, PairParams, 256, 1) { reverse<true>(p); }
KERNEL(broken_reverse, PairParams, 256, 1) { reverse<false>(p); }

// Exchanges neighbours within a warp through shared memory.
template <bool kSync> __device__ __forceinline__ void exchange(const PairParams& p) {
    SHARED_ARRAY(float, tile, 64);
    tile[threadIdx.x] = global_load(p.x + threadIdx.x);
    if (kSync) __syncwarp();
    global_store(p.y + threadIdx.x, tile[threadIdx.x ^ 1]);
}
KERNEL(t_exchange, PairParams, 64, 1) { exchange<true>(p); }
KERNEL(broken_exchange, PairParams, 64, 1) { exchange<false>(p); }

// Warp 0 writes, all read: without the barrier, right in ascending order by luck.
template <bool kBarrier> __device__ __forceinline__ void broadcast(const PairParams& p) {
    SHARED_ARRAY(float, tile, 32);
    if (threadIdx.x < 32) tile[threadIdx.x] = global_load(p.x + threadIdx.x);
    if (kBarrier) {
        __syncthreads();
    } else {
        __syncwarp();
    }
    global_store(p.y + threadIdx.x, tile[threadIdx.x % 32]);
}
KERNEL(t_broadcast, PairParams, 128, 1) { broadcast<true>(p); }
KERNEL(broken_broadcast, PairParams, 128, 1) { broadcast<false>(p); }

// Counter in shared memory: unsynchronised += is never wrong in the plain build, where fibers are not preempted.
KERNEL(broken_counter, PairParams, 64, 1) {
    SHARED_ARRAY(float, count, 1);
    if (threadIdx.x == 0) count[0] = 0.0f;
    __syncthreads();
    count[0] += global_load(p.x + threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) global_store(p.y, count[0]);
}

// Two blocks add to the same number.
KERNEL(broken_blocks, PairParams, 32, 1) {
    if (threadIdx.x == 0) global_store(p.y, global_load(p.y) + 1.0f);
}
KERNEL(t_blocks, PairParams, 32, 1) {
    if (threadIdx.x == 0) global_store(p.y + blockIdx.x, global_load(p.y + blockIdx.x) + 1.0f);
}

// One of two partial sums is never written.
template <int kWritten> __device__ __forceinline__ void partials(const PairParams& p) {
    SHARED_ARRAY(float, part, 2);
    if (threadIdx.x < kWritten) part[threadIdx.x] = global_load(p.x + threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) global_store(p.y, part[0] + part[1]);
}
KERNEL(t_partials, PairParams, 64, 1) { partials<2>(p); }
KERNEL(broken_partials, PairParams, 64, 1) { partials<1>(p); }

// Scratch of a reduction is written again while the other warp still reads it.
template <bool kBarrier> __device__ __forceinline__ void reuse(const PairParams& p) {
    SHARED_ARRAY(float, part, 2);
    const float v = warp_sum(global_load(p.x + threadIdx.x));
    if (lane_id() == 0) part[warp_id()] = v;
    __syncthreads();
    const float total = part[0] + part[1];
    if (kBarrier) __syncthreads();
    if (lane_id() == 0) part[warp_id()] = 2.0f * v;
    __syncthreads();
    global_store(p.y + threadIdx.x, total + part[0] + part[1]);
}
KERNEL(t_reuse, PairParams, 64, 1) { reuse<true>(p); }
KERNEL(broken_reuse, PairParams, 64, 1) { reuse<false>(p); }

// Hands over through global memory inside a block.
template <bool kBarrier> __device__ __forceinline__ void handover(const PairParams& p) {
    global_store(p.y + threadIdx.x, 2.0f * global_load(p.x + threadIdx.x));
    if (kBarrier) __syncthreads();
    const float v = global_load(p.y + 63 - threadIdx.x);
    if (kBarrier) __syncthreads();
    global_store(p.y + threadIdx.x, v);
}
KERNEL(t_handover, PairParams, 64, 1) { handover<true>(p); }
KERNEL(broken_handover, PairParams, 64, 1) { handover<false>(p); }

// ldmatrix of rows that other lanes wrote: it waits for the lanes, but not for what they wrote.
template <bool kSync> __device__ __forceinline__ void matrix(const PairParams& p) {
    EXTERN_SHARED(smem);
    const int lane = lane_id();
    const float v = global_load(p.x + threadIdx.x);
    uint32_t* words = reinterpret_cast<uint32_t*>(smem);
    if (threadIdx.x < 128) words[threadIdx.x] = static_cast<uint32_t>(v);
    if (kSync) __syncthreads();
    uint32_t r[4];
    ldmatrix_x4(r, smem_u32(smem) + static_cast<uint32_t>(lane) * 16);
    global_store(p.y + threadIdx.x, static_cast<float>(r[warp_id() % 4]));
}
KERNEL(t_matrix, PairParams, 256, 1) { matrix<true>(p); }
KERNEL(broken_matrix, PairParams, 256, 1) { matrix<false>(p); }

// Static and dynamic shared memory together: 256 bytes and what the launch gives.
KERNEL(t_both_shared, PairParams, 64, 1) {
    EXTERN_SHARED(smem);
    SHARED_ARRAY(float, tile, 64);
    float* more = reinterpret_cast<float*>(smem);
    tile[threadIdx.x] = global_load(p.x + threadIdx.x);
    more[threadIdx.x] = 1.0f;
    __syncthreads();
    global_store(p.y + threadIdx.x, tile[63 - threadIdx.x] + more[63 - threadIdx.x]);
}

// Reads past the end: of a static shared array, of dynamic shared memory, of global memory.
KERNEL(broken_static_end, PairParams, 64, 1) {
    SHARED_ARRAY(float, tile, 64);
    tile[threadIdx.x] = global_load(p.x + threadIdx.x);
    __syncthreads();
    const float* at = tile;
    global_store(p.y + threadIdx.x, at[threadIdx.x + 1]);
}
KERNEL(broken_dynamic_end, PairParams, 64, 1) {  // 256 bytes
    EXTERN_SHARED(smem);
    float* tile = reinterpret_cast<float*>(smem);
    tile[threadIdx.x] = global_load(p.x + threadIdx.x);
    __syncthreads();
    global_store(p.y + threadIdx.x, tile[threadIdx.x + 1]);
}
KERNEL(broken_global_end, PairParams, 64, 1) { global_store(p.y + threadIdx.x, global_load(p.x + threadIdx.x + 1)); }
KERNEL(broken_global_store, PairParams, 64, 1) { global_store(p.y + threadIdx.x + 1, global_load(p.x + threadIdx.x)); }
KERNEL(broken_null, PairParams, 64, 1) {
    if (threadIdx.x == 7 && blockIdx.x == 2) global_store(static_cast<float*>(nullptr), 1.0f);
}
KERNEL(broken_aligned, PairParams, 64, 1) {
    const float4 v = global_load(reinterpret_cast<const float4*>(p.x + 1));
    global_store(p.y, v.x);
}
KERNEL(broken_stack, PairParams, 32, 1) {
    volatile float deep[100000];
    deep[0] = global_load(p.x);
    global_store(p.y, deep[0]);
}

// Never ends on a device: a barrier half of the block does not reach, a warp operation of 20 lanes, two barriers.
KERNEL(broken_deadlock, PairParams, 64, 1) {
    if (warp_id() == 0) __syncwarp();
    if (lane_id() < 16) {
        (void)warp_sum(1.0f);
    } else {
        __syncthreads();
    }
    global_store(p.y + threadIdx.x, 0.0f);
}
KERNEL(broken_divergent, PairParams, 64, 1) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        global_store(p.y, 0.0f);
        __syncthreads();
    }
}

// Copies 128 x 16 bytes through two stages of cp.async. kWait: groups allowed to be pending.
template <int kWait, bool kLate> __device__ __forceinline__ void stages(const PairParams& p) {
    EXTERN_SHARED(smem);
    const uint32_t at = smem_u32(smem) + threadIdx.x * 16;
    for (int stage = 0; stage < 2; ++stage) {
        cp_async16(at + static_cast<uint32_t>(stage) * 2048, p.x + stage * 512 + threadIdx.x * 4, threadIdx.x % 3 != 0);
        cp_async_commit();
    }
    cp_async_wait<kWait>();
    if (kLate) cp_async16(at, p.x + threadIdx.x * 4, true);  // refills a stage that is still read below
    __syncthreads();
    const float4* tile = reinterpret_cast<const float4*>(smem);
    const unsigned other = 127 - threadIdx.x;
    global_store(reinterpret_cast<float4*>(p.y) + threadIdx.x, tile[other]);
    cp_async_wait<0>();
    __syncthreads();
    global_store(reinterpret_cast<float4*>(p.y) + 128 + threadIdx.x, tile[128 + other]);
}
KERNEL(t_stages, PairParams, 128, 1) { stages<1, false>(p); }
KERNEL(broken_stages_wait, PairParams, 128, 1) { stages<2, false>(p); }
KERNEL(broken_stages_refill, PairParams, 128, 1) { stages<1, true>(p); }

struct MmaParams {
    const bf16* a;  // [kM * 16, 16], row-major
    const bf16* b;  // [16, kN * 8], row-major (trans) or [kN * 8, 16]
    const float* c;
    float* y;           // [kM * 16, kN * 8]
    int trans, narrow;  // narrow: by ldmatrix x2
    int repeat, pad;
};

template <int kM, int kN> __device__ __forceinline__ void mma_tile(const MmaParams& p) {
    EXTERN_SHARED(smem);
    bf16* sa = reinterpret_cast<bf16*>(smem);
    bf16* sb = sa + kM * 256;
    const int lane = lane_id(), group = lane / 4, quad = lane % 4;
    for (int i = lane; i < kM * 256; i += 32) sa[i] = global_load(p.a + i);
    for (int i = lane; i < kN * 128; i += 32) sb[i] = global_load(p.b + i);
    __syncwarp();
    float acc[kM][kN][4];
    for (int m = 0; m < kM; ++m) {
        for (int n = 0; n < kN; ++n) {
            for (int i = 0; i < 4; ++i) {
                const int row = m * 16 + group + i / 2 * 8, column = n * 8 + quad * 2 + i % 2;
                acc[m][n][i] = global_load(p.c + row * kN * 8 + column);
            }
        }
    }
    uint32_t a[kM][4], b[kN][2];
    for (int m = 0; m < kM; ++m) ldmatrix_x4(a[m], smem_u32(sa + (m * 16 + lane % 16) * 16 + lane / 16 * 8));
    for (int n = 0; n < kN; ++n) {
        if (p.trans != 0) {
            const uint32_t at = smem_u32(sb + lane % 16 * kN * 8 + n * 8);
            ldmatrix_x2_trans(b[n], at);
            if (p.narrow == 0) {
                uint32_t four[4];
                ldmatrix_x4_trans(four, at);
                b[n][0] = four[0];
                b[n][1] = four[1];
            }
        } else {
            const uint32_t at = smem_u32(sb + (n * 8 + lane % 8) * 16 + lane / 8 % 2 * 8);
            ldmatrix_x2(b[n], at);
            if (p.narrow == 0) {
                uint32_t four[4];
                ldmatrix_x4(four, at);
                b[n][0] = four[0];
                b[n][1] = four[1];
            }
        }
    }
    for (int i = 0; i < p.repeat; ++i) mma_bf16<kM, kN>(acc, a, b);
    for (int m = 0; m < kM; ++m) {
        for (int n = 0; n < kN; ++n) {
            for (int i = 0; i < 4; ++i) {
                const int row = m * 16 + group + i / 2 * 8, column = n * 8 + quad * 2 + i % 2;
                global_store(p.y + row * kN * 8 + column, acc[m][n][i]);
            }
        }
    }
}
KERNEL(t_mma_1x1, MmaParams, 32, 1) { mma_tile<1, 1>(p); }
KERNEL(t_mma_2x3, MmaParams, 32, 1) { mma_tile<2, 3>(p); }
KERNEL(t_mma_2x8, MmaParams, 32, 1) { mma_tile<2, 8>(p); }
KERNEL(t_mma_4x4, MmaParams, 32, 1) { mma_tile<4, 4>(p); }

// A main loop as a convolution has it: 128 threads, warp tile 64 x 32 of a 128 x 64 block tile, K 32 per stage, 3
// stages.
struct GemmParams {
    const bf16* a;  // [grid * 128, k]
    const bf16* b;  // [64, k]
    float* y;       // [grid * 128, 64]
    long long k;
};
KERNEL(t_gemm, GemmParams, 128, 1) {
    constexpr int kStages = 3, kStage = 128 * 64 + 64 * 64;  // bytes of a stage: rows of 32 bf16
    EXTERN_SHARED(smem);
    const uint32_t base = smem_u32(smem);
    const int lane = lane_id(), warp = warp_id();
    const int row0 = warp / 2 * 64, column0 = warp % 2 * 32;
    const int steps = static_cast<int>(p.k) / 32;
    float acc[4][4][4] = {};
    // 16-byte chunk c of row r lies at chunk c ^ (r / 2 % 4): no bank conflicts in ldmatrix
    const auto chunk = [](int row, int c) { return static_cast<uint32_t>(row * 64 + (c ^ (row / 2 % 4)) * 16); };
    const auto fill = [&](int step) {
        const uint32_t stage = base + static_cast<uint32_t>(step % kStages * kStage);
        for (int i = static_cast<int>(threadIdx.x); i < 192 * 4; i += 128) {
            const int row = i / 4, c = i % 4;
            const bf16* from =
                row < 128 ? p.a + (static_cast<long long>(blockIdx.x) * 128 + row) * p.k : p.b + (row - 128) * p.k;
            if (step < steps) cp_async16(stage + chunk(row, c), from + step * 32 + c * 8, true);
        }
        cp_async_commit();
    };
    for (int step = 0; step < kStages - 1; ++step) fill(step);
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        const uint32_t stage = base + static_cast<uint32_t>(step % kStages * kStage);
        for (int k = 0; k < 2; ++k) {
            uint32_t a[4][4], b[4][2];
            for (int m = 0; m < 4; ++m) ldmatrix_x4(a[m], stage + chunk(row0 + m * 16 + lane % 16, k * 2 + lane / 16));
            for (int n = 0; n < 2; ++n) {
                uint32_t four[4];
                const int row = 128 + column0 + n * 16 + lane % 8 + lane / 16 * 8;
                ldmatrix_x4(four, stage + chunk(row, k * 2 + lane / 8 % 2));
                b[n * 2][0] = four[0], b[n * 2][1] = four[1], b[n * 2 + 1][0] = four[2], b[n * 2 + 1][1] = four[3];
            }
            mma_bf16<4, 4>(acc, a, b);
        }
        fill(step + kStages - 1);
    }
    for (int m = 0; m < 4; ++m) {
        for (int n = 0; n < 4; ++n) {
            for (int half = 0; half < 2; ++half) {
                const long long row = static_cast<long long>(blockIdx.x) * 128 + row0 + m * 16 + lane / 4 + half * 8;
                const int column = column0 + n * 8 + lane % 4 * 2;
                const float2 pair = make_float2(acc[m][n][half * 2], acc[m][n][half * 2 + 1]);
                global_store(reinterpret_cast<float2*>(p.y + row * 64 + column), pair);
            }
        }
    }
}
