// self_test.cpp: shows that the emulated device computes what a device computes, and that what is broken on purpose is
// noticed. Linked against a library that holds kernels.cu. Prints what fails; exit status 1 then.
#include <cmath>

#include "check.h"

void test_driver();  // self_test_driver.cpp
void test_checks();  // self_test_checks.cpp

namespace {

constexpr int kOrders = 8;  // ascending, descending, six random ones

void set_order(int i) { emu_set_order(i < 2 ? i : 2, static_cast<uint64_t>(i)); }

void test_warp_operations() {
    Buffer<float> x(64), y(64 * 16);
    for (int i = 0; i < 64; ++i) x.host[i] = static_cast<float>(i * i % 41 - 7);
    x.upload();
    for (int order = 0; order < kOrders; ++order) {
        set_order(order);
        EXPECT_EQ(launch("t_warp", 1, PairParams{x.pointer(), y.pointer(), 64}), 0);
        y.download();
        float total = 0.0f;
        for (float v : x.host) total += v;
        for (int t = 0; t < 64; ++t) {
            const int warp = t / 32 * 32, lane = t % 32, segment = lane / 8 * 8;
            const float* in = &x.host[static_cast<size_t>(warp)];
            const float* out = &y.host[static_cast<size_t>(t) * 16];
            float sum = 0.0f, most = in[0];
            for (int i = 0; i < 32; ++i) {
                sum += in[i];
                most = std::fmax(most, in[i]);
            }
            const float wanted[16] = {in[lane ^ 5],
                                      in[lane + 3 < 32 ? lane + 3 : lane],
                                      in[lane >= 3 ? lane - 3 : lane],
                                      in[lane * 7 % 32],
                                      in[lane % 8 + 3 < 8 ? lane + 3 : lane],
                                      in[lane % 8 >= 3 ? lane - 3 : lane],
                                      in[segment + 1],
                                      in[(lane ^ 16) <= segment + 7 ? lane ^ 16 : lane],
                                      11.0f,
                                      1.0f,
                                      0.0f,
                                      sum,
                                      total,
                                      most,
                                      static_cast<float>(t + 64),
                                      100.0f};
            for (int i = 0; i < 16; ++i) EXPECT_EQ(out[i] * 16, wanted[i] * 16);
        }
    }
    set_order(0);
}

float from_bf16(uint16_t v) {
    const uint32_t bits = static_cast<uint32_t>(v) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

// Small whole numbers: products and sums are exact, so any wrong lane or register shows.
struct MmaParams {
    const uint16_t* a;
    const uint16_t* b;
    const float* c;
    float* y;
    int trans, narrow, repeat, pad;
};

void test_mma(const char* name, int m, int n) {
    const int rows = m * 16, columns = n * 8;
    Buffer<uint16_t> a(static_cast<size_t>(rows) * 16), b(static_cast<size_t>(columns) * 16);
    Buffer<float> c(static_cast<size_t>(rows) * columns), y(static_cast<size_t>(rows) * columns);
    Random random{static_cast<uint64_t>(m * 100 + n)};
    const auto draw = [&](Buffer<uint16_t>& to) {
        for (uint16_t& v : to.host) {
            const float f = static_cast<float>(random.small());
            uint32_t bits;
            memcpy(&bits, &f, 4);
            v = static_cast<uint16_t>(bits >> 16);
        }
        to.upload();
    };
    draw(a);
    draw(b);
    for (float& v : c.host) v = static_cast<float>(random.small());
    c.upload();
    for (int variant = 0; variant < 4; ++variant) {
        set_order(variant);
        const int trans = variant & 1, narrow = variant / 2;
        const MmaParams params{a.pointer(), b.pointer(), c.pointer(), y.pointer(), trans, narrow, 2, 0};
        EXPECT_EQ(launch(name, 1, params, 16384), 0);
        y.download();
        for (int row = 0; row < rows; ++row) {
            for (int column = 0; column < columns; ++column) {
                float wanted = c.host[static_cast<size_t>(row * columns + column)];
                for (int k = 0; k < 16; ++k) {
                    const int at = trans != 0 ? k * columns + column : column * 16 + k;
                    wanted += 2.0f * from_bf16(a.host[static_cast<size_t>(row * 16 + k)]) *
                              from_bf16(b.host[static_cast<size_t>(at)]);
                }
                EXPECT_EQ(y.host[static_cast<size_t>(row * columns + column)], wanted);
            }
        }
    }
    set_order(0);
}

struct GemmParams {
    const uint16_t* a;
    const uint16_t* b;
    float* y;
    long long k;
};

void test_gemm() {
    constexpr int kBlocks = 3, kRows = kBlocks * 128;
    constexpr long long kK = 160;
    Buffer<uint16_t> a(kRows * kK), b(64 * kK);
    Buffer<float> y(kRows * 64);
    Random random{5};
    for (auto* buffer : {&a, &b}) {
        for (uint16_t& v : buffer->host) {
            const float f = static_cast<float>(random.small());
            uint32_t bits;
            memcpy(&bits, &f, 4);
            v = static_cast<uint16_t>(bits >> 16);
        }
        buffer->upload();
    }
    emu_reset_counters();
    for (int order = 0; order < kOrders; ++order) {
        set_order(order);
        emu_set_threads(order % 3 + 1);
        EXPECT_EQ(launch("t_gemm", kBlocks, GemmParams{a.pointer(), b.pointer(), y.pointer(), kK}, 3 * (128 + 64) * 64),
                  0);
        y.download();
        for (int row = 0; row < kRows; ++row) {
            for (int column = 0; column < 64; ++column) {
                float wanted = 0.0f;
                for (long long k = 0; k < kK; ++k)
                    wanted += from_bf16(a.host[static_cast<size_t>(row * kK + k)]) *
                              from_bf16(b.host[static_cast<size_t>(column * kK + k)]);
                EXPECT_EQ(y.host[static_cast<size_t>(row * 64 + column)], wanted);
            }
        }
    }
    set_order(0);
    emu_set_threads(2);
    uint64_t stats[EMU_STATS], banks[2];
    EXPECT_EQ(emu_kernel_stats("t_gemm", stats), 0);
    EXPECT_EQ(stats[EMU_CALLS], kOrders);
    EXPECT_EQ(stats[EMU_BLOCKS], kOrders * kBlocks);
    EXPECT_EQ(stats[EMU_MMA] * 2048, kOrders * kRows * 64 * kK);
    EXPECT_EQ(stats[EMU_GLOBAL_READ], kOrders * kBlocks * (128 + 64) * kK * 2);
    EXPECT_EQ(stats[EMU_GLOBAL_WRITTEN], kOrders * kRows * 64 * 4);
    EXPECT_EQ(emu_kernel_banks("t_gemm", banks), 0);
    EXPECT_EQ(banks[0], banks[1]);  // the swizzle leaves no conflicts
}

// 99 KiB in all; the dynamic part begins at a multiple of 1,024 bytes behind the static one.
void test_shared_limit() {
    Buffer<float> x(64), y(64);
    const PairParams params{x.pointer(), y.pointer(), 64};
    EXPECT_EQ(launch("t_both_shared", 1, params, 98 * 1024), 0);
    EXPECT_EQ(launch("t_both_shared", 1, params, 98 * 1024 + 16), 1);
    EXPECT(contains(last_report(), "256 static bytes, 1024 with the alignment"));
}

void test_tracking() {
    Buffer<float> x(1000), y(1000);
    emu_reset_counters();
    emu_set_tracking(1);
    for (int i = 0; i < 2; ++i) EXPECT_EQ(launch("t_scale", 20, PairParams{x.pointer(), y.pointer(), 1000}), 0);
    emu_set_tracking(0);
    EXPECT_EQ(launch("t_scale", 20, PairParams{x.pointer(), y.pointer(), 1000}), 0);
    uint64_t stats[EMU_STATS];
    EXPECT_EQ(emu_kernel_stats("t_scale", stats), 0);
    EXPECT_EQ(stats[EMU_CALLS], 3);
    EXPECT_EQ(stats[EMU_GLOBAL_READ], 3 * 4000);
    EXPECT_EQ(stats[EMU_SECTORS_READ], 2 * 125);
    EXPECT_EQ(stats[EMU_SECTORS_WRITTEN], 2 * 125);
}

void test_cache() {
    Buffer<float> x(1000), y(1000);
    struct Expected {
        uint64_t bytes, read, written;
    };
    // All fits: the second launch finds x, and y is still dirty. Hardly anything does: everything moves twice. Off:
    // nothing counts.
    for (const Expected& e : {Expected{1 << 16, 4000, 4000}, Expected{1 << 10, 8000, 8000}, Expected{0, 0, 0}}) {
        emu_reset_counters();
        emu_set_cache(e.bytes, 4);
        for (int i = 0; i < 2; ++i) EXPECT_EQ(launch("t_scale", 20, PairParams{x.pointer(), y.pointer(), 1000}), 0);
        uint64_t memory[2];
        EXPECT_EQ(emu_kernel_memory("t_scale", memory), 0);
        EXPECT_EQ(memory[0], e.read);
        EXPECT_EQ(memory[1], e.written);
    }
}

}  // namespace

int main() {
    void* context = nullptr;
    EXPECT_EQ(cuInit(0), 0);
    EXPECT_EQ(cuDevicePrimaryCtxRetain(&context, 0), 0);
    EXPECT_EQ(cuCtxSetCurrent(context), 0);
    test_warp_operations();
    test_mma("t_mma_1x1", 1, 1);
    test_mma("t_mma_2x3", 2, 3);
    test_mma("t_mma_2x8", 2, 8);
    test_mma("t_mma_4x4", 4, 4);
    test_gemm();
    test_shared_limit();
    test_tracking();
    test_cache();
    test_checks();
    test_driver();
    EXPECT_EQ(emu_counter("live_bytes"), 0);
    EXPECT_EQ(cuDevicePrimaryCtxRelease_v2(0), 0);
    EXPECT_EQ(emu_counter("leaks"), 0);
    uint64_t forgotten = 0;
    EXPECT_EQ(cuDevicePrimaryCtxRetain(&context, 0), 0);
    EXPECT_EQ(cuMemAlloc_v2(&forgotten, 12345), 0);
    EXPECT_EQ(cuDevicePrimaryCtxRelease_v2(0), 0);
    EXPECT_EQ(emu_counter("leaks"), 1);
    EXPECT(contains(last_report(), "12345 bytes"));
    printf("%s: %d failures\n", emu_is_check_build() != 0 ? "check build" : "plain build", failures);
    return failures == 0 ? 0 : 1;
}
