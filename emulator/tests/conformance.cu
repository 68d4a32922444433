// conformance.cu: does the emulator do what the hardware does? One kernel per wrapper of ptx.cuh and cu.cuh, run on a
// GPU and on the emulated device with the same random input. The only thing that ties the emulated bodies to silicon.
//
// Compiled by nvcc into an image that conformance.cpp carries, and by the host's compiler for the emulated device.
#include "../../kernels/lang/vec.cuh"
#include "conformance.h"

__device__ __forceinline__ void put(const ConformanceParams& p, int i, float v) {
    global_store(p.out + i, __float_as_uint(v));
}

// Fills `words` 32-bit words of shared memory with random bits.
__device__ __forceinline__ void fill_shared(const ConformanceParams& p, unsigned char* smem, int words) {
    uint32_t* to = reinterpret_cast<uint32_t*>(smem);
    for (int i = static_cast<int>(threadIdx.x); i < words; i += 32) to[i] = global_load(p.bits + p.round * 64 + i);
    __syncwarp();
}

KERNEL(c_cp_async16, ConformanceParams, 32, 1) {
    EXTERN_SHARED(smem);
    fill_shared(p, smem, 256);
    const uint32_t t = threadIdx.x;
    const bool valid = (global_load(p.bits + p.round * 64 + t) & 1) != 0;
    cp_async16(smem_u32(smem) + (t ^ 5) * 16, p.bits + 1024 + t * 4, valid);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 8; ++i)
        global_store(p.out + i * 32 + t, reinterpret_cast<uint32_t*>(smem)[static_cast<uint32_t>(i) * 32 + t]);
}

template <int kBytes> __device__ __forceinline__ void small_copies(const ConformanceParams& p) {
    EXTERN_SHARED(smem);
    fill_shared(p, smem, 128);
    const uint32_t t = threadIdx.x;
    const bool valid = (global_load(p.bits + p.round * 64 + t) & 2) != 0;
    cp_async_small<kBytes>(smem_u32(smem) + t * kBytes,
                           reinterpret_cast<const unsigned char*>(p.bits + 1024) + (t ^ 3) * kBytes, valid);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; ++i)
        global_store(p.out + i * 32 + t, reinterpret_cast<uint32_t*>(smem)[static_cast<uint32_t>(i) * 32 + t]);
}
KERNEL(c_cp_async4, ConformanceParams, 32, 1) { small_copies<4>(p); }
KERNEL(c_cp_async8, ConformanceParams, 32, 1) { small_copies<8>(p); }

KERNEL(c_cp_async_groups, ConformanceParams, 32, 1) {  // three stages, the oldest is read first
    EXTERN_SHARED(smem);
    const uint32_t t = threadIdx.x, at = smem_u32(smem) + t * 16;
    for (uint32_t stage = 0; stage < 3; ++stage) {
        cp_async16(at + stage * 512, p.bits + p.round * 64 + stage * 128 + t * 4, true);
        cp_async_commit();
    }
    const uint32_t* words = reinterpret_cast<const uint32_t*>(smem);
    cp_async_wait<2>();
    __syncthreads();
    global_store(p.out + t, words[(t * 4) ^ 8]);
    cp_async_wait<1>();
    __syncthreads();
    global_store(p.out + 32 + t, words[128 + ((t * 4) ^ 8)]);
    cp_async_wait<0>();
    __syncthreads();
    global_store(p.out + 64 + t, words[256 + ((t * 4) ^ 8)]);
}

// A random row for each lane.
__device__ __forceinline__ uint32_t random_row(const ConformanceParams& p, const unsigned char* smem) {
    return smem_u32(smem) + global_load(p.bits + 4096 + p.round * 32 + threadIdx.x) % 256 * 16;
}
KERNEL(c_ldmatrix_x4, ConformanceParams, 32, 1) {
    EXTERN_SHARED(smem);
    fill_shared(p, smem, 1024);
    uint32_t r[4];
    ldmatrix_x4(r, random_row(p, smem));
    for (int i = 0; i < 4; ++i) global_store(p.out + i * 32 + threadIdx.x, r[i]);
}
KERNEL(c_ldmatrix_x4_trans, ConformanceParams, 32, 1) {
    EXTERN_SHARED(smem);
    fill_shared(p, smem, 1024);
    uint32_t r[4];
    ldmatrix_x4_trans(r, random_row(p, smem));
    for (int i = 0; i < 4; ++i) global_store(p.out + i * 32 + threadIdx.x, r[i]);
}
KERNEL(c_ldmatrix_x2, ConformanceParams, 32, 1) {
    EXTERN_SHARED(smem);
    fill_shared(p, smem, 1024);
    uint32_t r[2];
    ldmatrix_x2(r, random_row(p, smem));
    for (int i = 0; i < 2; ++i) global_store(p.out + i * 32 + threadIdx.x, r[i]);
}
KERNEL(c_ldmatrix_x2_trans, ConformanceParams, 32, 1) {
    EXTERN_SHARED(smem);
    fill_shared(p, smem, 1024);
    uint32_t r[2];
    ldmatrix_x2_trans(r, random_row(p, smem));
    for (int i = 0; i < 2; ++i) global_store(p.out + i * 32 + threadIdx.x, r[i]);
}

// Registers straight from memory: which lane holds what is exactly the question.
template <int kM, int kN, bool kWhole> __device__ __forceinline__ void products(const ConformanceParams& p) {
    const uint32_t t = threadIdx.x;
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(p.halves) + p.round * 64;
    uint32_t a[kM][4], b[kN][2];
    float acc[kM][kN][4];
    const auto operand = [&](uint32_t i) {
        const uint32_t pair = global_load(pairs + i * 32 + t);
        if (!kWhole) return pair;
        float lo, hi;  // small whole numbers: every product and sum is exact
        unpack_bf16(pair, lo, hi);
        return pack_bf16(rintf(lo * 5.0f), rintf(hi * 5.0f));
    };
    for (uint32_t m = 0; m < kM; ++m) {
        for (uint32_t i = 0; i < 4; ++i) a[m][i] = operand(m * 4 + i);
    }
    for (uint32_t n = 0; n < kN; ++n) {
        for (uint32_t i = 0; i < 2; ++i) b[n][i] = operand(kM * 4 + n * 2 + i);
    }
    for (uint32_t m = 0; m < kM; ++m) {
        for (uint32_t n = 0; n < kN; ++n) {
            for (uint32_t i = 0; i < 4; ++i) {
                const float c = global_load(p.numbers + p.round * 64 + ((m * kN + n) * 4 + i) * 32 + t);
                acc[m][n][i] = kWhole ? rintf(c * 8.0f) : c;
            }
        }
    }
    mma_bf16<kM, kN>(acc, a, b);
    for (int m = 0; m < kM; ++m) {
        for (int n = 0; n < kN; ++n) {
            for (int i = 0; i < 4; ++i) put(p, ((m * kN + n) * 4 + i) * 32 + static_cast<int>(t), acc[m][n][i]);
        }
    }
}
KERNEL(c_mma_whole_1x1, ConformanceParams, 32, 1) { products<1, 1, true>(p); }
KERNEL(c_mma_whole_2x4, ConformanceParams, 32, 1) { products<2, 4, true>(p); }
KERNEL(c_mma_random_1x1, ConformanceParams, 32, 1) { products<1, 1, false>(p); }
KERNEL(c_mma_random_4x4, ConformanceParams, 32, 1) { products<4, 4, false>(p); }

// Any bits: NaN, infinities, subnormal numbers, ties. Once alone, once as halves of a pair that differ.
KERNEL(c_to_bf16, ConformanceParams, 32, 1) {
    const auto number = [&](int i) {
        uint32_t bits = global_load(p.bits + p.round * 64 + i);
        if (i % 4 == 1) bits = (bits & 0xffff0000u) | 0x8000u;                         // half way
        if (i % 4 == 2) bits = (bits & 0x807fffffu) | (i % 8 == 2 ? 0 : 0x7f800000u);  // subnormal; NaN or infinity
        return __uint_as_float(bits);
    };
    for (int i = static_cast<int>(threadIdx.x); i < 1024; i += 32) {
        put(p, i, to_float(to_bf16(number(i))));
        global_store(p.out + 1024 + i, pack_bf16(number(i), number((i + 5) % 1024)));
    }
}
KERNEL(c_bf16_pairs, ConformanceParams, 32, 1) {
    for (int i = static_cast<int>(threadIdx.x); i < 1024; i += 32) {
        float lo, hi;
        unpack_bf16(global_load(p.bits + p.round * 64 + i), lo, hi);
        global_store(p.out + 2 * i, __float_as_uint(lo));
        global_store(p.out + 2 * i + 1, __float_as_uint(hi));
    }
}

KERNEL(c_shuffles, ConformanceParams, 32, 1) {
    const int t = static_cast<int>(threadIdx.x);
    const uint32_t v = global_load(p.bits + p.round * 64 + t), w = global_load(p.bits + p.round * 64 + 32 + t);
    int next = 0;
    const auto out = [&](uint32_t value) { global_store(p.out + next++ * 32 + t, value); };
    for (int width = 4; width <= 32; width *= 2) {
        out(__shfl_sync(kFullMask, v, static_cast<int>(w % 32), width));
        for (int step = 1; step < 32; step *= 2) {
            out(__shfl_xor_sync(kFullMask, v, step, width));
            out(__shfl_down_sync(kFullMask, v, static_cast<unsigned>(step), width));
            out(__shfl_up_sync(kFullMask, v, static_cast<unsigned>(step), width));
        }
    }
    out(__ballot_sync(kFullMask, static_cast<int>(w & 1)));
    out(static_cast<uint32_t>(__any_sync(kFullMask, v % 64 == 0)) * 2 +
        static_cast<uint32_t>(__all_sync(kFullMask, v % 64 != 0)));
    out(__float_as_uint(warp_sum(to_float(to_bf16(__uint_as_float(v & 0x3fffffffu))))));
}

// In 5 blocks along z, so that no other special register has the same values.
KERNEL(c_read_anew, ConformanceParams, 32, 1) {
    const int at = static_cast<int>(blockIdx.z * 64 + threadIdx.x);
    global_store(p.out + at, static_cast<uint32_t>(1000 + thread_anew()));
    global_store(p.out + at + 32, static_cast<uint32_t>(2000 + block_z_anew()));
}

// Numbers of 32 and of 63 bits on either side: no tensor here is large enough for the second way of divide().
KERNEL(c_divide, ConformanceParams, 32, 1) {
    for (int i = static_cast<int>(threadIdx.x); i < 512; i += 32) {
        const uint32_t* bits = p.bits + p.round * 64 + 4 * i;
        const auto number = [&](int at, bool is_long) {
            const uint64_t high = is_long ? global_load(bits + at + 1) >> (1 + i % 29) : 0;
            return static_cast<long long>(high << 32 | global_load(bits + at));
        };
        const long long a = number(0, i % 4 != 0), b = number(2, i % 4 == 3);
        const Quotient q = divide(a, b > 0 ? b : 1);
        global_store(p.out + 4 * i, static_cast<uint32_t>(q.quotient));
        global_store(p.out + 4 * i + 1, static_cast<uint32_t>(q.quotient >> 32));
        global_store(p.out + 4 * i + 2, static_cast<uint32_t>(q.remainder));
        global_store(p.out + 4 * i + 3, static_cast<uint32_t>(q.remainder >> 32));
    }
}

// Functions whose last bits may differ. Arguments in [-4, 4], positive for the root and the logarithm.
KERNEL(c_math, ConformanceParams, 32, 1) {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += 32) {
        const float x = 4.0f * global_load(p.numbers + p.round * 64 + i);
        const float functions[8] = {rsqrtf(fabsf(x) + 0.001f), erff(x),  expf(x),          logf(fabsf(x) + 0.001f),
                                    sqrtf(fabsf(x)),           tanhf(x), fmaf(x, x, 0.1f), 1.0f / (x + 5.0f)};
        for (int f = 0; f < 8; ++f) put(p, i * 8 + f, functions[f]);
    }
}
