// speed.cpp: how fast the emulated device multiplies: t_gemm, a main loop as a convolution has it.
#include <chrono>

#include "check.h"

struct GemmParams {
    const uint16_t* a;
    const uint16_t* b;
    float* y;
    long long k;
};

int main() {
    void* context = nullptr;
    cuInit(0);
    cuDevicePrimaryCtxRetain(&context, 0);
    cuCtxSetCurrent(context);
    constexpr int kBlocks = 64;
    constexpr long long kK = 864;
    {
        Buffer<uint16_t> a(kBlocks * 128 * kK, 0x3f80), b(64 * kK, 0x3f80);
        Buffer<float> y(kBlocks * 128 * 64);
        for (int threads = 1; threads <= 2; ++threads) {
            emu_set_threads(threads);
            double best = 0.0;
            for (int i = 0; i < 3; ++i) {
                const auto start = std::chrono::steady_clock::now();
                EXPECT_EQ(launch("t_gemm", kBlocks, GemmParams{a.pointer(), b.pointer(), y.pointer(), kK},
                                 3 * (128 + 64) * 64),
                          0);
                const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
                const double speed = static_cast<double>(kBlocks) * 128 * 64 * static_cast<double>(kK) / s * 1e-9;
                if (speed > best) best = speed;
            }
            printf("%s build, %d threads: %.2f GMAC/s\n", emu_is_check_build() != 0 ? "check" : "plain", threads, best);
        }
        y.download();
        EXPECT_EQ(y.host[77], kK);
    }
    return failures == 0 ? 0 : 1;
}
