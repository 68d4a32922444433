// norm.cu: instance norm with the residual sum and the leaky ReLU that follow it, forward; backward is norm_grad.cu.
//
//   y = act((x - mean) rstd gamma + beta + residual), statistics of each instance and channel over its voxels
//
// Grid: norm.cuh. Traffic, in passes over the tensor: reads x twice, the residual once, writes y once.
// Source: Ulyanov et al. 2016, arXiv 1607.08022; merging of moments: Chan, Golub, LeVeque 1979.
#include "norm.cuh"

constexpr int kRun = 8;  // voxels summed relative to one estimate of the mean
constexpr float kEps = 1e-5f;

struct NormStatsParams {
    const bf16* x;
    float* partial;  // [instances, slices, channels, 2]: mean, sum of squared deviations
    NormShape shape;
};

struct NormApplyParams {
    const bf16* x;
    const bf16* residual;  // may be null
    const float* gamma;
    const float* beta;
    const float* partial;
    bf16* y;
    float* stats;  // [instances, channels, 2]: mean, rstd
    NormShape shape;
    float slope;  // of the activation, 1: none
    int reserved;
};

// Moments of kW channels: mean, sum of squared deviations, and how many values.
template <int kW> using Moments = float[2 * kW + 1];

// Chan, Golub, LeVeque: moments of the union of two sets.
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

// Moments of this thread's voxels. Sums of a run are taken relative to the mean of all runs before it (the first: its
// first value), so that no offset of the data costs precision.
template <int kW>
__device__ __forceinline__ void slice_moments(const bf16* x, const NormShape& s, const Place<kW>& at, int n,
                                              Moments<kW>& m) {
    constexpr int kUnroll = 4;
    x += at.offset(s, n);
    for (int v = 0; v < at.count; v += kRun) {
        const int count = at.count - v < kRun ? at.count - v : kRun;
        float sum[kW] = {}, square[kW] = {};
#pragma unroll 1
        for (int k = 0; k < count; k += kUnroll, x += kUnroll * at.step) {
            Raw<kW> raw[kUnroll];
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) raw[u] = k + u < count ? load_raw<kW>(x + u * at.step) : Raw<kW>{};
            float value[kW];
            if (v + k == 0) {
                unpack(raw[0], value);
#pragma unroll
                for (int i = 0; i < kW; ++i) m[i] = value[i];
            }
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) {
                unpack(raw[u], value);
#pragma unroll
                for (int i = 0; i < kW; ++i) {
                    const float d = k + u < count ? value[i] - m[i] : 0.0f;
                    sum[i] += d;
                    square[i] = fmaf(d, d, square[i]);
                }
            }
        }
        // Merge for a run whose sums are relative to the mean so far.
        m[2 * kW] += static_cast<float>(count);
        const float share = 1.0f / m[2 * kW];
#pragma unroll
        for (int i = 0; i < kW; ++i) {
            const float d = sum[i] * share;
            m[i] += d;
            m[kW + i] += fmaf(-sum[i], d, square[i]);
        }
    }
}

// From the moments of a whole instance, in row 0: its statistics, and the coefficients of y = (x - mean) scale + shift.
template <int kW>
__device__ __forceinline__ void finish_statistics(const NormApplyParams& p, const Moments<kW>& m, int channel,
                                                  int local, int n, float* coefficients) {
    const NormShape& s = p.shape;
#pragma unroll
    for (int i = 0; i < kW; ++i) {
        const float variance = fmaxf(m[kW + i] / static_cast<float>(s.voxels), 0.0f);
        const float rstd = 1.0f / sqrtf(variance + kEps);
        // Parameters one by one: they lie anywhere in their packed block.
        coefficients[kMean * kTileChannels + local + i] = m[i];
        coefficients[kScale * kTileChannels + local + i] = rstd * global_load(p.gamma + channel + i);
        coefficients[kShift * kTileChannels + local + i] = global_load(p.beta + channel + i);
        if (blockIdx.x == 0) {
            float2* out = reinterpret_cast<float2*>(p.stats) + static_cast<long long>(n) * s.channels + channel + i;
            global_store(out, make_float2(m[i], rstd));
        }
    }
}

// The same from the partial results of all slices. Threads stand in rows of one channel each.
__device__ __forceinline__ void combine_statistics(const NormApplyParams& p, float* scratch, float* coefficients) {
    const NormShape& s = p.shape;
    const int tile = s.tile * s.width, rows = kThreads / tile;
    const int local = static_cast<int>(threadIdx.x) % tile, row = static_cast<int>(threadIdx.x) / tile;
    const int channel = static_cast<int>(blockIdx.y) * tile + local;
    const int n = static_cast<int>(blockIdx.z);
    Moments<1> m = {};
    if (channel < s.channels && row < rows) {
        const float2* from = reinterpret_cast<const float2*>(p.partial) +
                             static_cast<long long>(n) * s.slices * s.channels + channel;
#pragma unroll 4
        for (int slice = row; slice < s.slices; slice += rows) {
            const float2 v = global_load(from + static_cast<long long>(slice) * s.channels);
            const float count = static_cast<float>(slice_begin(s, slice + 1) - slice_begin(s, slice));
            const Moments<1> other = {v.x, v.y, count};
            Merge{}(m, other);
        }
    }
    reduce_rows<kThreads>(m, row, rows, tile, scratch, Merge{});
    if (row == 0 && channel < s.channels) finish_statistics<1>(p, m, channel, local, n, coefficients);
    __syncthreads();
}

// y of this thread's voxels.
template <int kW>
__device__ __forceinline__ void apply(const NormApplyParams& p, const Place<kW>& at, int n,
                                      const float* coefficients) {
    constexpr int kUnroll = 2;
    if (at.count == 0) return;
    float mean[kW], scale[kW], shift[kW];
    coefficient(coefficients, kMean, at, mean);
    coefficient(coefficients, kScale, at, scale);
    coefficient(coefficients, kShift, at, shift);
    long long offset = at.offset(p.shape, n);
#pragma unroll 1
    for (int v = 0; v < at.count; v += kUnroll, offset += kUnroll * at.step) {
        Raw<kW> x[kUnroll], residual[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const bool inside = v + u < at.count;
            x[u] = inside ? load_raw<kW>(p.x + offset + u * at.step) : Raw<kW>{};
            residual[u] = inside && p.residual != nullptr ? load_raw<kW>(p.residual + offset + u * at.step) : Raw<kW>{};
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            if (v + u >= at.count) break;
            float value[kW], r[kW];
            unpack(x[u], value);
            unpack(residual[u], r);
#pragma unroll
            for (int i = 0; i < kW; ++i) {
                value[i] = fmaf(value[i] - mean[i], scale[i], shift[i]) + r[i];
                value[i] *= value[i] > 0.0f ? 1.0f : p.slope;
            }
            store(p.y + offset + u * at.step, value);
        }
    }
}

template <int kW> __device__ __forceinline__ void stats_kernel(const NormStatsParams& p, float* scratch) {
    const NormShape& s = p.shape;
    const Place<kW> at(s);
    Moments<kW> m = {};
    slice_moments<kW>(p.x, s, at, static_cast<int>(blockIdx.z), m);
    reduce_rows<kThreads>(m, at.row, at.rows, s.tile, scratch, Merge{});
    if (!at.leads(s)) return;
    const long long slice = static_cast<long long>(blockIdx.z) * s.slices + blockIdx.x;
    float2* out = reinterpret_cast<float2*>(p.partial) + slice * s.channels + at.channel;
#pragma unroll
    for (int i = 0; i < kW; ++i) global_store(out + i, make_float2(m[i], m[kW + i]));
}

KERNEL(norm_stats_bf16, NormStatsParams, 512, 2) {
    SHARED_ARRAY(float, scratch, 17 * kThreads);
    if (p.shape.width == 8) {
        stats_kernel<8>(p, scratch);
    } else {
        stats_kernel<1>(p, scratch);
    }
}

KERNEL(norm_apply_bf16, NormApplyParams, 512, 2) {
    SHARED_ARRAY(float, scratch, 3 * kThreads);
    SHARED_ARRAY(float, coefficients, 3 * kTileChannels);
    combine_statistics(p, scratch, coefficients);
    if (p.shape.width == 8) {
        apply(p, Place<8>(p.shape), static_cast<int>(blockIdx.z), coefficients);
    } else {
        apply(p, Place<1>(p.shape), static_cast<int>(blockIdx.z), coefficients);
    }
}

template <int kW>
__device__ __forceinline__ void small_kernel(const NormApplyParams& p, float* scratch, float* coefficients) {
    const int n = static_cast<int>(blockIdx.z);
    const Place<kW> at(p.shape);
    Moments<kW> m = {};
    slice_moments<kW>(p.x, p.shape, at, n, m);
    reduce_rows<kThreads>(m, at.row, at.rows, p.shape.tile, scratch, Merge{});
    if (at.leads(p.shape)) {
        finish_statistics<kW>(p, m, at.channel, at.group * kW, n, coefficients);
    }
    __syncthreads();
    apply(p, at, n, coefficients);
}

// Both in one launch, for instances of one slice.
KERNEL(norm_small_bf16, NormApplyParams, 512, 1) {
    SHARED_ARRAY(float, scratch, 17 * kThreads);
    SHARED_ARRAY(float, coefficients, 3 * kTileChannels);
    if (p.shape.width == 8) {
        small_kernel<8>(p, scratch, coefficients);
    } else {
        small_kernel<1>(p, scratch, coefficients);
    }
}
