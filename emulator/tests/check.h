// check.h: what the test programs share: expectations, device buffers, launches by name.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../emulator.h"
#include "driver_api.h"

inline int failures = 0;

#define EXPECT(condition)                                                   \
    do {                                                                    \
        if (!(condition)) {                                                 \
            ++failures;                                                     \
            printf("%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
        }                                                                   \
    } while (0)
#define EXPECT_EQ(found, wanted)                                                                               \
    do {                                                                                                       \
        const long long found_value = static_cast<long long>(found);                                           \
        const long long wanted_value = static_cast<long long>(wanted);                                         \
        if (found_value != wanted_value) {                                                                     \
            ++failures;                                                                                        \
            printf("%s:%d: %s is %lld, wanted %lld\n", __FILE__, __LINE__, #found, found_value, wanted_value); \
        }                                                                                                      \
    } while (0)

inline std::string last_report() {
    char text[4096];
    emu_last_report(text, sizeof(text));
    return text;
}

inline bool contains(const std::string& text, const char* part) {
    if (text.find(part) != std::string::npos) return true;
    printf("no \"%s\" in: %s\n", part, text.c_str());
    return false;
}

// Device memory with the host's copy.
template <class T> struct Buffer {
    std::vector<T> host;
    uint64_t device = 0;

    explicit Buffer(size_t count, T value = T{}) : host(count, value) {
        EXPECT_EQ(cuMemAlloc_v2(&device, count * sizeof(T)), 0);
        upload();
    }
    ~Buffer() { cuMemFree_v2(device); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* pointer() const { return reinterpret_cast<T*>(device); }
    void upload() { EXPECT_EQ(cuMemcpyHtoD_v2(device, host.data(), host.size() * sizeof(T)), 0); }
    void download() { EXPECT_EQ(cuMemcpyDtoH_v2(host.data(), device, host.size() * sizeof(T)), 0); }
};

struct PairParams {
    const float* x;
    float* y;
    long long len;
};

// Runs now, in the calling thread's order.
template <class P> int launch(const char* name, uint32_t blocks, const P& params, uint32_t shared = 0) {
    const uint32_t grid[3] = {blocks, 1, 1};
    return emu_launch(name, grid, shared, &params);
}

// A small generator with the same numbers everywhere.
struct Random {
    uint64_t state;
    uint32_t next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<uint32_t>(state >> 33);
    }
    float uniform() { return static_cast<float>(next() % 20001) / 10000.0f - 1.0f; }
    int small() { return static_cast<int>(next() % 9) - 4; }
};
