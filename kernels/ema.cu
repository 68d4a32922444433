// ema.cu: moving average of parameters.
//
//   avg += w (p - avg); w = 1 copies exactly, w = 0 leaves the average as it is;  half_copy = bf16(avg)
//
// One thread to 8 elements. Traffic: 14 bytes a parameter (p, avg read; avg and the bf16 copy written).
#include "ema.cuh"
#include "lang/vec.cuh"

struct EmaParams {
    const float* scalars;
    const float* param;
    float* average;
    bf16* half_copy;  // may be null
    long long len;
};

KERNEL(ema_f32, EmaParams, 256, 4) {
    const float w = global_load(p.scalars + kEma);
    for_each_piece(p.len, aligned16(p.param, p.average, p.half_copy), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        float average[kW], param[kW] = {};
        if (w != 0.0f) load(p.param + at, param);
        load(p.average + at, average);
#pragma unroll
        for (int i = 0; i < kW; ++i) average[i] = moved_average(average[i], param[i], w);
        if (w != 0.0f) store(p.average + at, average);
        if (p.half_copy != nullptr) store(p.half_copy + at, average);
    });
}
