// conformance.cpp: runs the kernels of conformance.cu on a GPU and on the emulated device and compares. Needs nothing
// but the GPU's driver, libcuda.so.1. Without a GPU (argument --emulated-only) it checks that every kernel runs, writes
// what it should, and gives equal bits in every order.
#include "conformance.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <dlfcn.h>

#include "../launch.h"

#ifdef EMU_IMAGE
asm(".section .rodata\n.balign 64\nconformance_image:\n.incbin \"" EMU_IMAGE "\"\n.byte 0\n.previous");
extern "C" const char conformance_image[] __attribute__((visibility("hidden")));
#else
static const char conformance_image[1] = {};  // built without nvcc
#endif

namespace {

constexpr int kRounds = 32;

struct Input {
    std::vector<uint32_t> bits = std::vector<uint32_t>(kInput);
    std::vector<float> numbers = std::vector<float>(kInput);
    std::vector<uint16_t> halves = std::vector<uint16_t>(kInput);
    Input() {
        uint64_t state = 1;
        const auto next = [&] {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            return static_cast<uint32_t>(state >> 32);
        };
        for (uint32_t& v : bits) v = next();
        for (size_t i = 0; i < numbers.size(); ++i) {
            numbers[i] = static_cast<float>(next() % 2049) / 1024.0f - 1.0f;
            const uint32_t v = next();
            halves[i] = static_cast<uint16_t>((v & 0x8000u) | (126 - (v >> 16) % 12) << 7 | (v & 127));
        }
    }
};

std::vector<uint32_t> run_emulated(const Comparison& one, const Input& input, int round) {
    std::vector<uint32_t> out(kOutput, 0xffffffffu);
    const ConformanceParams params{input.bits.data(), input.numbers.data(), input.halves.data(), out.data(), round};
    const emu::Kernel* kernel = emu::find_kernel(one.name);
    const emu::Failure failure =
        kernel == nullptr ? emu::Failure{1, "no such kernel"}
                          : emu::run_grid(emu::Launch{kernel, emu::Index{1, 1, one.blocks_z}, kShared, &params});
    if (failure.code != 0) {
        printf("%s on the emulated device: %s\n", one.name, failure.text.c_str());
        exit(2);
    }
    return out;
}

// The few calls we need of the driver API.
class Gpu {
  public:
    Gpu() {
        library_ = dlopen("libcuda.so.1", RTLD_NOW);
        if (library_ == nullptr) library_ = dlopen("libcuda.so", RTLD_NOW);
        if (library_ == nullptr || conformance_image[0] == '\0') {
            printf("no NVIDIA driver, or built without device code; try --emulated-only\n");
            exit(2);
        }
        void* context = nullptr;
        int device = 0;
        char name[100] = "";
        call("cuInit", 0u);
        call("cuDeviceGet", &device, 0);
        call("cuDeviceGetName", static_cast<char*>(name), 100, device);
        call("cuDevicePrimaryCtxRetain", &context, device);
        call("cuCtxSetCurrent", context);
        call("cuModuleLoadData", &module_, static_cast<const void*>(conformance_image));
        printf("device: %s\n", name);
    }

    template <class T> uint64_t upload(const std::vector<T>& host) {
        uint64_t p = 0;
        call("cuMemAlloc_v2", &p, host.size() * sizeof(T));
        call("cuMemcpyHtoD_v2", p, static_cast<const void*>(host.data()), host.size() * sizeof(T));
        return p;
    }

    std::vector<uint32_t> run(const Comparison& one, ConformanceParams params) {
        std::vector<uint32_t> out(kOutput, 0xffffffffu);
        const uint64_t p = reinterpret_cast<uint64_t>(params.out);
        call("cuMemcpyHtoD_v2", p, static_cast<const void*>(out.data()), size_t{kOutput} * 4);
        void* function = nullptr;
        call("cuModuleGetFunction", &function, module_, one.name);
        void* list[] = {&params};
        call("cuLaunchKernel", function, 1u, 1u, one.blocks_z, 32u, 1u, 1u, static_cast<unsigned>(kShared),
             static_cast<void*>(nullptr), static_cast<void**>(list), static_cast<void**>(nullptr));
        call("cuMemcpyDtoH_v2", static_cast<void*>(out.data()), p, size_t{kOutput} * 4);
        return out;
    }

  private:
    template <class... A> void call(const char* name, A... arguments) {
        const auto function = reinterpret_cast<int (*)(A...)>(dlsym(library_, name));
        const int code = function == nullptr ? -1 : function(arguments...);
        if (code == 0) return;
        printf("%s: error %d\n", name, code);
        exit(2);
    }

    void* library_ = nullptr;
    void* module_ = nullptr;
};

// Words that differ by more than allowed; *most is the largest difference.
int differing(const Comparison& one, const std::vector<uint32_t>& device, const std::vector<uint32_t>& host,
              double* most) {
    int count = 0;
    for (size_t i = 0; i < static_cast<size_t>(one.words); ++i) {
        if (device[i] == host[i]) continue;
        const double a = static_cast<double>(emu::bit_cast<float>(device[i]));
        const double b = static_cast<double>(emu::bit_cast<float>(host[i]));
        const double off = std::fabs(a - b) / std::fmax(1.0, std::fabs(b));
        if (one.tolerance > 0.0f) *most = std::fmax(*most, off);
        if (!(off <= static_cast<double>(one.tolerance)) || one.tolerance == 0.0f) ++count;
    }
    return count;
}

int compare_all(const Input& input) {
    Gpu gpu;
    ConformanceParams params{reinterpret_cast<const uint32_t*>(gpu.upload(input.bits)),
                             reinterpret_cast<const float*>(gpu.upload(input.numbers)),
                             reinterpret_cast<const uint16_t*>(gpu.upload(input.halves)),
                             reinterpret_cast<uint32_t*>(gpu.upload(std::vector<uint32_t>(kOutput))), 0};
    int failed = 0;
    for (const Comparison& one : kComparisons) {
        int wrong = 0;
        double most = 0.0;
        for (int round = 0; round < kRounds; ++round) {
            params.round = round;
            wrong += differing(one, gpu.run(one, params), run_emulated(one, input, round), &most);
        }
        printf("%-22s %s: %d of %d words differ", one.name, wrong == 0 ? "agrees" : "DIFFERS", wrong,
               one.words * kRounds);
        if (one.tolerance > 0.0f)
            printf(" by more than %.1e, largest difference %.1e", static_cast<double>(one.tolerance), most);
        printf("\n");
        failed += wrong != 0;
    }
    return failed;
}

int emulated_only(const Input& input) {
    int failed = 0;
    for (const Comparison& one : kComparisons) {
        std::vector<uint32_t> first;
        for (int order = 0; order < 3; ++order) {
            emu::schedule() = emu::Schedule{static_cast<emu::Order>(order), 3};
            const std::vector<uint32_t> out = run_emulated(one, input, 0);
            if (order == 0) first = out;
            bool complete = true;
            for (int i = 0; i < kOutput; ++i) complete &= i < one.words || out[static_cast<size_t>(i)] == 0xffffffffu;
            complete &= out[static_cast<size_t>(one.words) - 1] != 0xffffffffu;
            const bool good = complete && out == first;
            failed += !good;
            if (!good)
                printf("%s: %s\n", one.name, complete ? "depends on the order" : "not the words it should write");
        }
    }
    printf("conformance kernels on the emulated device only: %d failures\n", failed);
    return failed;
}

}  // namespace

int main(int count, char** arguments) {
    const Input input;
    const bool alone = count > 1 && strcmp(arguments[1], "--emulated-only") == 0;
    return (alone ? emulated_only(input) : compare_all(input)) == 0 ? 0 : 1;
}
