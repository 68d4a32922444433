// norm.cu: instance norm with the residual sum and the leaky ReLU that follow it, forward; backward is norm_bwd.cu.
//
//   y = act((x - mean) rstd gamma + beta + residual), statistics of each instance and channel over its voxels
//
// Grid: norm.cuh. Traffic, in passes over the tensor: reads x twice, the residual once, writes y once. Where the
// convolution that made x left the moments of its blocks (conv3d/epilogue.cuh), x is read once.
// Source: Ulyanov et al. 2016, arXiv 1607.08022.
#include "moments.cuh"
#include "norm.cuh"

constexpr int kRun = 8;  // voxels summed relative to one estimate of the mean
constexpr float kEps = 1e-5f;

struct NormStatsParams {
    const bf16* x;
    float* partial;  // [instances, slices, channels, 2]: mean, sum of squared deviations
    float* counts;   // [instances, slices]: voxels
    NormShape shape;
};

struct NormFinishParams {
    const float* partial;  // [instances, parts, channels, 2], of parts of any size
    const float* counts;   // [instances, parts]
    float* stats;          // [instances, channels, 2]: mean, rstd
    long long voxels;      // of an instance
    int parts, channels;
};

struct NormApplyParams {
    const bf16* x;
    const bf16* residual;  // may be null
    const float* gamma;
    const float* beta;
    bf16* y;
    float* stats;  // [instances, channels, 2]: mean, rstd; norm_small_bf16 writes them
    NormShape shape;
    float slope;  // of the activation, 1: none
    int reserved;
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

__device__ __forceinline__ float2 finish(float mean, float square, long long voxels) {
    const float variance = fmaxf(square / static_cast<float>(voxels), 0.0f);
    return make_float2(mean, 1.0f / sqrtf(variance + kEps));
}

// Coefficients of y = (x - mean) scale + shift. Parameters one by one: they lie anywhere in their packed block.
__device__ __forceinline__ void put_coefficients(const NormApplyParams& p, float2 stats, int channel, int local,
                                                 float* coefficients) {
    coefficients[kMean * kTileChannels + local] = stats.x;
    coefficients[kScale * kTileChannels + local] = stats.y * global_load(p.gamma + channel);
    coefficients[kShift * kTileChannels + local] = global_load(p.beta + channel);
}

__device__ __forceinline__ float2* stats_of(const NormApplyParams& p, int n, int channel) {
    return reinterpret_cast<float2*>(p.stats) + static_cast<long long>(n) * p.shape.channels + channel;
}

// y of this thread's voxels.
template <int kW>
__device__ __forceinline__ void apply(const NormApplyParams& p, const Place<kW>& at, int n, const float* coefficients) {
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
    if (at.channel == 0) {
        const int voxels = static_cast<int>(slice_begin(s, static_cast<int>(blockIdx.x) + 1) -
                                            slice_begin(s, static_cast<int>(blockIdx.x)));
        global_store(p.counts + slice, static_cast<float>(voxels));
    }
}

KERNEL(norm_stats_bf16, NormStatsParams, 512, 2) {
    SHARED_ARRAY(float, scratch, 17 * kThreads);
    if (p.shape.width == 8) {
        stats_kernel<8>(p, scratch);
    } else {
        stats_kernel<1>(p, scratch);
    }
}

// Statistics of an instance from its parts. Threads stand in rows of kFinishChannels channels; a row takes every
// kFinishRows-th part.
KERNEL(norm_finish_f32, NormFinishParams, 512, 2) {
    SHARED_ARRAY(float, scratch, 3 * kThreads);
    const int local = static_cast<int>(threadIdx.x) % kFinishChannels,
              row = static_cast<int>(threadIdx.x) / kFinishChannels;
    const int channel = static_cast<int>(blockIdx.x) * kFinishChannels + local;
    const long long n = blockIdx.y;
    Moments<1> m = {};
    if (channel < p.channels) {
        const float* counts = p.counts + n * p.parts;
        const float2* from = reinterpret_cast<const float2*>(p.partial) + n * p.parts * p.channels + channel;
#pragma unroll 4
        for (int part = row; part < p.parts; part += kFinishRows) {
            const float2 v = global_load(from + static_cast<long long>(part) * p.channels);
            const Moments<1> other = {v.x, v.y, global_load(counts + part)};
            Merge{}(m, other);
        }
    }
    reduce_rows<kThreads>(m, row, kFinishRows, kFinishChannels, scratch, Merge{});
    if (row == 0 && channel < p.channels) {
        global_store(reinterpret_cast<float2*>(p.stats) + n * p.channels + channel, finish(m[0], m[1], p.voxels));
    }
}

KERNEL(norm_apply_bf16, NormApplyParams, 512, 2) {
    SHARED_ARRAY(float, coefficients, 3 * kTileChannels);
    const int n = static_cast<int>(blockIdx.z), tile = p.shape.tile * p.shape.width;
    const int local = static_cast<int>(threadIdx.x), channel = static_cast<int>(blockIdx.y) * tile + local;
    if (local < tile && channel < p.shape.channels) {
        put_coefficients(p, global_load(stats_of(p, n, channel)), channel, local, coefficients);
    }
    __syncthreads();
    if (p.shape.width == 8) {
        apply(p, Place<8>(p.shape), n, coefficients);
    } else {
        apply(p, Place<1>(p.shape), n, coefficients);
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
#pragma unroll
        for (int i = 0; i < kW; ++i) {
            const float2 stats = finish(m[i], m[kW + i], p.shape.voxels);
            put_coefficients(p, stats, at.channel + i, at.group * kW + i, coefficients);
            global_store(stats_of(p, n, at.channel + i), stats);
        }
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
