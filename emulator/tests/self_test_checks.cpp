// self_test_checks.cpp: kernels that are wrong on purpose.
#include <cmath>
#include <cstdlib>

#include "check.h"

namespace {

struct Outcome {
    int code;
    int wrong;         // results that are not as wanted, NaN included
    uint64_t reports;  // of the check build
    std::string text;
};

// Runs a kernel on x = 1, 2, 3, ... and compares y with what is wanted.
template <class Wanted>
Outcome run(const char* name, uint32_t blocks, size_t in, size_t out, uint32_t shared, int order, Wanted wanted) {
    Buffer<float> x(in), y(out, 0.0f);
    for (size_t i = 0; i < in; ++i) x.host[i] = static_cast<float>(i + 1);
    x.upload();
    emu_reset_reports();
    emu_set_order(order < 2 ? order : 2, static_cast<uint64_t>(order));
    Outcome outcome{};
    outcome.code = launch(name, blocks, PairParams{x.pointer(), y.pointer(), static_cast<long long>(out)}, shared);
    emu_set_order(0, 0);
    y.download();
    for (size_t i = 0; i < out; ++i) outcome.wrong += !(y.host[i] == wanted(i));
    outcome.reports = emu_reports();
    char text[4096] = "";
    emu_reports_text(text, sizeof(text));
    outcome.text = text;
    return outcome;
}

float reversed(size_t i) { return static_cast<float>(256 - i); }
float exchanged(size_t i) { return static_cast<float>((i ^ 1) + 1); }
float repeated(size_t i) { return static_cast<float>(i % 32 + 1); }
float zero(size_t) { return 0.0f; }

// Wrong in the plain build in these orders; reported by the check build in every order.
// The sanitizers' builds run what is right only: they end the process at the first error.
#ifdef EMU_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

template <class Wanted>
void expect_bug(const char* name, uint32_t blocks, size_t in, size_t out, uint32_t shared, int plain_mask,
                const char* kind, Wanted wanted) {
    if (kSanitized) return;
    for (int order = 0; order < 3; ++order) {
        const Outcome o = run(name, blocks, in, out, shared, order, wanted);
        if (emu_is_check_build() != 0) {
            if (o.reports == 0) printf("%s, order %d: no report\n", name, order);
            EXPECT(o.reports > 0);
            EXPECT(contains(o.text, kind));
            EXPECT(contains(o.text, name));
            if (getenv("EMU_SHOW") != nullptr && order == 0) printf("%s\n", o.text.c_str());
        } else if ((plain_mask >> order & 1) != 0) {
            if (o.wrong == 0) printf("%s, order %d: right by luck\n", name, order);
            EXPECT(o.wrong > 0);
        }
    }
}

template <class Wanted>
void expect_clean(const char* name, uint32_t blocks, size_t in, size_t out, uint32_t shared, Wanted wanted) {
    for (int order = 0; order < 8; ++order) {
        const Outcome o = run(name, blocks, in, out, shared, order, wanted);
        EXPECT_EQ(o.code, 0);
        EXPECT_EQ(o.wrong, 0);
        EXPECT_EQ(o.reports, 0);
        if (o.reports != 0 || o.wrong != 0) printf("%s, order %d: %s\n", name, order, o.text.c_str());
    }
}

// Ends the launch with this code and text in both builds; the process and the device go on.
void expect_failure(const char* name, uint32_t blocks, size_t in, int code, const char* text, const char* where) {
    if (kSanitized) return;
    const Outcome o = run(name, blocks, in, 64, 0, 0, zero);
    EXPECT_EQ(o.code, code);
    EXPECT(contains(last_report(), text));
    EXPECT(contains(last_report(), name));
    EXPECT(contains(last_report(), where));
    if (getenv("EMU_SHOW") != nullptr) printf("%s\n", last_report().c_str());
}

float staged(size_t i) {
    const size_t stage = i / 512, t = 127 - i % 512 / 4;
    return t % 3 != 0 ? static_cast<float>(stage * 512 + t * 4 + i % 4 + 1) : 0.0f;
}

float reused(size_t) { return 3.0f * 2080.0f; }  // three times the sum of 1 to 64
float handed(size_t i) { return static_cast<float>(2 * (64 - i)); }
float matrix(size_t i) { return static_cast<float>(i / 32 % 4 * 32 + i % 32 + 1); }

// Device memory that nothing has written, and parts a test has marked.
void test_marked() {
    Buffer<float> y(64);
    uint64_t x = 0;
    EXPECT_EQ(cuMemAlloc_v2(&x, 1024), 0);
    const PairParams params{reinterpret_cast<const float*>(x), y.pointer(), 64};
    const uint64_t wanted = static_cast<uint64_t>(emu_is_check_build());
    emu_reset_reports();
    EXPECT_EQ(launch("t_scale", 1, params), 0);
    EXPECT_EQ(emu_reports(), wanted);
    emu_reset_reports();
    EXPECT_EQ(cuMemsetD32Async(x, 0, 256, nullptr), 0);
    EXPECT_EQ(cuCtxSynchronize(), 0);
    EXPECT_EQ(launch("t_scale", 1, params), 0);
    EXPECT_EQ(emu_reports(), 0);
    EXPECT_EQ(emu_forbid(reinterpret_cast<void*>(x + 252), 4), 0);
    EXPECT_EQ(launch("t_scale", 1, params), 0);
    EXPECT_EQ(emu_reports(), wanted);
    y.download();
    EXPECT(std::isnan(y.host[63]));
    EXPECT_EQ(emu_allow(reinterpret_cast<void*>(x), 1024), 0);
    EXPECT_EQ(emu_forbid(reinterpret_cast<void*>(x), 1025), 1);
    EXPECT_EQ(cuMemFree_v2(x), 0);
}

}  // namespace

void test_checks() {
    EXPECT_EQ(emu_reports(), 0);  // of all the right kernels before
    constexpr int kAll = 7, kDescending = 2, kNever = 0;
    expect_clean("t_reverse", 1, 256, 256, 0, reversed);
    expect_bug("broken_reverse", 1, 256, 256, 0, kAll, "race", reversed);
    expect_clean("t_exchange", 1, 64, 64, 0, exchanged);
    expect_bug("broken_exchange", 1, 64, 64, 0, kAll, "race", exchanged);
    expect_clean("t_broadcast", 1, 32, 128, 0, repeated);
    expect_bug("broken_broadcast", 1, 32, 128, 0, kDescending, "race", repeated);
    expect_bug("broken_counter", 1, 64, 1, 0, kNever, "race", [](size_t) { return 2080.0f; });
    expect_clean("t_blocks", 4, 1, 4, 0, [](size_t) { return 1.0f; });
    expect_bug("broken_blocks", 4, 1, 1, 0, kNever, "race", [](size_t) { return 4.0f; });
    expect_clean("t_partials", 1, 2, 1, 0, [](size_t) { return 3.0f; });
    expect_bug("broken_partials", 1, 2, 1, 0, kAll, "uninitialised", [](size_t) { return 3.0f; });
    expect_bug("broken_static_end", 1, 64, 64, 0, kAll, "out of bounds",
               [](size_t i) { return static_cast<float>(i + 2); });
    expect_bug("broken_dynamic_end", 1, 64, 64, 256, kAll, "out of bounds",
               [](size_t i) { return static_cast<float>(i + 2); });
    expect_clean("t_stages", 1, 1024, 1024, 4096, staged);
    expect_bug("broken_stages_wait", 1, 1024, 1024, 4096, kAll, "cp.async", staged);
    expect_bug("broken_stages_refill", 1, 1024, 1024, 4096, kAll, "cp.async", staged);

    expect_clean("t_reuse", 1, 64, 64, 0, reused);
    expect_bug("broken_reuse", 1, 64, 64, 0, kAll, "race", reused);
    expect_clean("t_handover", 1, 64, 64, 0, handed);
    expect_bug("broken_handover", 1, 64, 64, 0, kAll, "race", handed);
    expect_clean("t_matrix", 1, 256, 256, 512, matrix);
    expect_bug("broken_matrix", 1, 256, 256, 512, kDescending, "race", matrix);
    test_marked();

    // x ends at its guard page; y is 64 floats, so one more is behind it
    expect_failure("broken_global_end", 1, 64, 700, "0 bytes past the end of a device allocation of 256 bytes",
                   "thread 63");
    expect_failure("broken_global_store", 1, 65, 700, "0 bytes past the end of a device allocation of 256 bytes",
                   "thread 63");
    expect_failure("broken_null", 3, 1, 700, "illegal address", "block (2, 0, 0), thread 7");
    expect_failure("broken_aligned", 1, 64, 716, "misaligned access: 16 bytes", "thread 0");
    expect_failure("broken_stack", 1, 64, 719, "stack overflow", "thread 0");
    expect_failure("broken_deadlock", 1, 64, 702, "deadlock", "threads 0-15 wait in a warp operation at common.cuh:");
    EXPECT(kSanitized || contains(last_report(), "threads 16-31 wait in __syncthreads at kernels.cu:"));
    expect_failure("broken_divergent", 1, 64, 719, "divergent barrier", "kernels.cu:");
    // a write in front of an allocation, or between its end and the guard page, is found after the launch
    if (!kSanitized) {
        Buffer<float> x(64), y(63);
        EXPECT_EQ(launch("t_scale", 1, PairParams{x.pointer(), y.pointer(), 64}), 700);
        EXPECT(contains(last_report(), "past the end of a device allocation of 252 bytes"));
        EXPECT_EQ(launch("t_scale", 1, PairParams{x.pointer(), y.pointer() - 1, 1}), 700);
        EXPECT(contains(last_report(), "4 bytes before a device allocation of 252 bytes"));
    }
    // nothing of this hurts the next launch
    expect_clean("t_reverse", 1, 256, 256, 0, reversed);
    emu_reset();
    emu_reset_reports();
}
