// conformance.h: what conformance.cu and conformance.cpp share.
#pragma once

#include <cstdint>

struct ConformanceParams {
    const uint32_t* bits;  // random
    const float* numbers;  // uniform in [-1, 1], multiples of 1/1024
    const uint16_t*
        halves;  // bf16 below 1 in magnitude, of many magnitudes: their products need more bits than a sum has
    uint32_t* out;
    long long round;  // another part of the input each time
};
constexpr int kInput = 8192;   // elements of each input
constexpr int kOutput = 4096;  // words
constexpr int kShared = 8192;  // bytes of dynamic shared memory

struct Comparison {
    const char* name;
    int words;        // of output
    float tolerance;  // 0: equal bits; else relative to max(1, |value|)
    unsigned blocks_z = 1;
};
constexpr Comparison kComparisons[] = {
    {"c_cp_async16", 256, 0.0f},
    {"c_cp_async4", 128, 0.0f},
    {"c_cp_async8", 128, 0.0f},
    {"c_cp_async_groups", 96, 0.0f},
    {"c_ldmatrix_x4", 128, 0.0f},
    {"c_ldmatrix_x4_trans", 128, 0.0f},
    {"c_ldmatrix_x2", 64, 0.0f},
    {"c_ldmatrix_x2_trans", 64, 0.0f},
    {"c_mma_whole_1x1", 128, 0.0f},
    {"c_mma_whole_2x4", 1024, 0.0f},
    // 17 terms below 1 in magnitude: sums below 17, each of 16 additions off by 2^-22 of it at most (the hardware
    // truncates)
    {"c_mma_random_1x1", 128, 17.0f * 16.0f / 4194304.0f},
    {"c_mma_random_4x4", 2048, 17.0f * 16.0f / 4194304.0f},
    {"c_to_bf16", 2048, 0.0f},
    {"c_bf16_pairs", 2048, 0.0f},
    {"c_shuffles", 67 * 32, 0.0f},
    {"c_read_anew", 5 * 64, 0.0f, 5},
    {"c_divide", 2048, 0.0f},
    // CUDA's bounds are 1 to 4 units in the last place; the largest values here are near 55
    {"c_math", 2048, 8.0f / 8388608.0f},
};
