// moments.cuh: means and squared deviations of parts of a set, and of their union.
//
// Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
#pragma once

#include "lang/common.cuh"

// Moments of kW channels: mean, sum of squared deviations, and how many values.
template <int kW> using Moments = float[2 * kW + 1];

// Moments of the union of two sets, either of which may be empty.
struct Merge {
    template <int kN> __device__ __forceinline__ void operator()(float (&a)[kN], const float (&b)[kN]) const {
        constexpr int kW = kN / 2;
        const float total = a[2 * kW] + b[2 * kW];
        const float share = total > 0.0f ? b[2 * kW] / total : 0.0f;
        const float weight = a[2 * kW] * share;
#pragma unroll
        for (int i = 0; i < kW; ++i) {
            const float d = b[i] - a[i];
            a[i] = fmaf(d, share, a[i]);
            a[kW + i] += fmaf(d * d, weight, b[kW + i]);
        }
        a[2 * kW] = total;
    }
};
