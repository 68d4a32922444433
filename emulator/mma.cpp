// mma.cpp: the warp tile of mma.m16n8k16. The accumulators stay in the lanes' own arrays: each lane holds, per
// instruction, four of them, {row g: 2 columns, row g+8: 2 columns}. The operands are spread out once per tile so that
// the update of those four (or of two instructions' eight) is one vector operation.
#include <memory>
#include <cstring>

#include "worker.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace emu {

namespace {

constexpr int kK = 16;
constexpr int kMaxTiles = 16;  // in each direction

using Vec4 = float __attribute__((vector_size(16)));

struct MmaArgs {
    float* acc;
    const uint32_t* a;
    const uint32_t* b;
    int m, n;
};

inline float low(uint32_t v) { return bit_cast<float>(v << 16); }
inline float high(uint32_t v) { return bit_cast<float>(v & 0xffff0000u); }

// a: [m][g][k] {row g, row g, row g+8, row g+8};  b: [q][n][k] {column 2q, column 2q+1, twice}
struct alignas(64) Operands {
    Vec4 a[kMaxTiles][8][kK];
    Vec4 b[4][kMaxTiles / 2][kK][2];
};

void spread_a(const MmaArgs* const* lanes, int m_count, Operands& out) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const int group = lane / 4, quad = lane % 4;
        for (int m = 0; m < m_count; ++m) {
            const uint32_t* a = lanes[lane]->a + m * 4;
            Vec4* row = out.a[m][group];
            row[2 * quad] = Vec4{low(a[0]), low(a[0]), low(a[1]), low(a[1])};
            row[2 * quad + 1] = Vec4{high(a[0]), high(a[0]), high(a[1]), high(a[1])};
            row[2 * quad + 8] = Vec4{low(a[2]), low(a[2]), low(a[3]), low(a[3])};
            row[2 * quad + 9] = Vec4{high(a[2]), high(a[2]), high(a[3]), high(a[3])};
        }
    }
}

void spread_b(const MmaArgs* const* lanes, int n_count, Operands& out) {
    for (int columns = 0; columns < 4; ++columns) {  // the pair 2*columns, 2*columns+1
        for (int quad = 0; quad < 4; ++quad) {
            const uint32_t* first = lanes[columns * 8 + quad]->b;
            const uint32_t* second = lanes[columns * 8 + 4 + quad]->b;
            for (int n = 0; n < n_count; ++n) {
                auto& to = out.b[columns][n / 2];
                for (int half = 0; half < 2; ++half) {
                    const uint32_t x = first[n * 2 + half], y = second[n * 2 + half];
                    to[2 * quad + 8 * half][n % 2] = Vec4{low(x), low(y), low(x), low(y)};
                    to[2 * quad + 8 * half + 1][n % 2] = Vec4{high(x), high(y), high(x), high(y)};
                }
            }
        }
    }
}

template <int kPairs>
inline __attribute__((always_inline)) void update4(float* acc, const Vec4* a, const Vec4 (*b)[kK][2]) {
    Vec4 sum[kPairs][2];
    memcpy(sum, acc, sizeof(sum));
    for (int k = 0; k < kK; ++k) {
        const Vec4 left = a[k];
        for (int i = 0; i < kPairs; ++i) {
            sum[i][0] += left * b[i][k][0];
            sum[i][1] += left * b[i][k][1];
        }
    }
    memcpy(acc, sum, sizeof(sum));
}

void multiply4(const MmaArgs* const* lanes, int m_count, int n_count, const Operands& in) {
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int m = 0; m < m_count; ++m) {
            const Vec4* a = in.a[m][lane / 4];
            const auto* b = in.b[lane % 4];
            float* acc = lanes[lane]->acc + m * n_count * 4;
            int n = 0;
            for (; n + 4 <= n_count; n += 4) update4<2>(acc + n * 4, a, b + n / 2);
            for (; n + 2 <= n_count; n += 2) update4<1>(acc + n * 4, a, b + n / 2);
            if (n < n_count) {
                Vec4 sum;
                memcpy(&sum, acc + n * 4, sizeof(sum));
                for (int k = 0; k < kK; ++k) sum += a[k] * b[n / 2][k][0];
                memcpy(acc + n * 4, &sum, sizeof(sum));
            }
        }
    }
}

#if defined(__x86_64__)

template <int kPairs>
__attribute__((target("avx2,fma"))) inline void update8(float* acc, const Vec4* a, const Vec4 (*b)[kK][2]) {
    __m256 sum[kPairs];
    for (int i = 0; i < kPairs; ++i) sum[i] = _mm256_loadu_ps(acc + i * 8);
    for (int k = 0; k < kK; ++k) {
        const __m256 left = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(&a[k]));
        for (int i = 0; i < kPairs; ++i) {
            sum[i] = _mm256_fmadd_ps(left, _mm256_load_ps(reinterpret_cast<const float*>(b[i][k])), sum[i]);
        }
    }
    for (int i = 0; i < kPairs; ++i) _mm256_storeu_ps(acc + i * 8, sum[i]);
}

__attribute__((target("avx2,fma"))) void multiply8(const MmaArgs* const* lanes, int m_count, int n_count,
                                                   const Operands& in) {
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int m = 0; m < m_count; ++m) {
            const Vec4* a = in.a[m][lane / 4];
            const auto* b = in.b[lane % 4];
            float* acc = lanes[lane]->acc + m * n_count * 4;
            int n = 0;
            for (; n + 8 <= n_count; n += 8) update8<4>(acc + n * 4, a, b + n / 2);
            for (; n + 4 <= n_count; n += 4) update8<2>(acc + n * 4, a, b + n / 2);
            for (; n + 2 <= n_count; n += 2) update8<1>(acc + n * 4, a, b + n / 2);
            if (n < n_count) {
                __m128 sum = _mm_loadu_ps(acc + n * 4);
                for (int k = 0; k < kK; ++k) sum = _mm_fmadd_ps(a[k], b[n / 2][k][0], sum);
                _mm_storeu_ps(acc + n * 4, sum);
            }
        }
    }
}

const bool kWide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");

#endif

// On the heap: a library that is loaded late has little room for thread-local data.
Operands& operands_of_thread() {
    static thread_local std::unique_ptr<Operands> operands = std::make_unique<Operands>();
    return *operands;
}

void run_mma(void** args, const void*) {
    const MmaArgs* lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<MmaArgs*>(args[lane]);
    const int m = lanes[0]->m, n = lanes[0]->n;
    Operands& spread = operands_of_thread();
    spread_a(lanes, m, spread);
    spread_b(lanes, n, spread);
#if defined(__x86_64__)
    if (kWide) {
        multiply8(lanes, m, n, spread);
    } else {
        multiply4(lanes, m, n, spread);
    }
#else
    multiply4(lanes, m, n, spread);
#endif
    current.counters.mma += static_cast<uint64_t>(m) * static_cast<uint64_t>(n);
}

}  // namespace

void mma_bf16(float* acc, const uint32_t* a, const uint32_t* b, int m, int n) {
    if (m > kMaxTiles || n > kMaxTiles) fail("mma tile of %d x %d instructions; at most 16 x 16", m, n);
    MmaArgs args{acc, a, b, m, n};
    // tiles of different size are different operations
    this_worker->collective(run_mma, &args, Site{"mma_bf16", m * 64 + n}, __builtin_return_address(0));
}

}  // namespace emu
