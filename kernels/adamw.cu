// adamw.cu: AdamW with decoupled weight decay and a clipping factor, in place.
//
//   g = factor grad;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   p = p (1 - lr wd) - lr / bias1 * m / (sqrt(v / bias2) + eps);  half_copy = bf16(p)
//
// If the norm is not finite none of these changes. With an average: avg += w (p - avg) with p before the update, as
// ema.cu does it, and its bf16 copy. One pass over a packed block, one thread to 8 elements.
// Traffic: 30 bytes a parameter (p, m, v, grad read; p, m, v and the bf16 copy written), 40 with the average and its
// copy.
// Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
#include "ema.cuh"
#include "lang/vec.cuh"

// Places in the scalars, as in src/ops/adamw.rs.
constexpr int kLr = 0, kBias1 = 1, kBias2 = 2;

struct AdamWRule {
    float beta1, beta2, one_minus_beta1, one_minus_beta2, eps, weight_decay;
};

struct AdamWParams {
    const float* scalars;
    const float* norm;  // norm, factor
    const float* grad;
    float* param;
    float* m;
    float* v;
    bf16* half_copy;     // may be null
    float* average;      // may be null
    bf16* average_half;  // may be null
    long long len;
    AdamWRule rule;
};

template <int kW>
__device__ __forceinline__ void move_average(const AdamWParams& p, float w, long long at, const float (&param)[kW]) {
    float average[kW];
    load(p.average + at, average);
#pragma unroll
    for (int i = 0; i < kW; ++i) average[i] = moved_average(average[i], param[i], w);
    if (w != 0.0f) store(p.average + at, average);
    if (p.average_half != nullptr) store(p.average_half + at, average);
}

KERNEL(adamw_f32, AdamWParams, 256, 2) {
    const AdamWRule r = p.rule;
    const float lr = global_load(p.scalars + kLr), factor = global_load(p.norm + 1);
    const float keep = 1.0f - lr * r.weight_decay;
    const float rate = lr / global_load(p.scalars + kBias1), second = 1.0f / global_load(p.scalars + kBias2);
    const bool update = fabsf(global_load(p.norm)) <= 3.402823466e38f;  // false for NaN
    const float w = global_load(p.scalars + kEma);
    const bool wide = aligned16(p.grad, p.param, p.m, p.v, p.half_copy) && aligned16(p.average, p.average_half);
    for_each_piece(p.len, wide, [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        float param[kW], m[kW], v[kW], g[kW];
        load(p.param + at, param);
        if (p.average != nullptr) move_average<kW>(p, w, at, param);
        if (update) {
            load(p.m + at, m);
            load(p.v + at, v);
            load(p.grad + at, g);
#pragma unroll
            for (int i = 0; i < kW; ++i) {
                g[i] *= factor;
                m[i] = r.beta1 * m[i] + r.one_minus_beta1 * g[i];
                v[i] = r.beta2 * v[i] + r.one_minus_beta2 * g[i] * g[i];
                param[i] = param[i] * keep - rate * m[i] / (sqrtf(v[i] * second) + r.eps);
            }
            store(p.param + at, param);
            store(p.m + at, m);
            store(p.v + at, v);
        }
        if (p.half_copy != nullptr) store(p.half_copy + at, param);
    });
}
