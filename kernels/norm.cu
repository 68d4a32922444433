// norm.cu: instance norm with the residual sum and the leaky ReLU that follow it.
//
//   y = act((x - mean) rstd gamma + beta + residual), statistics of each instance and channel over its voxels
//   g = dy act'(y);  dbeta = sum g;  dgamma = sum g xhat;  dres = g
//   dx = gamma rstd (g - mean(g) - xhat mean(g xhat)), xhat = (x - mean) rstd
//
// Grid (slices, tiles, instances): a block takes a tile of at most 64 channels of a slice of an instance's voxels. Its
// threads stand in rows of `tile` accesses (8 channels in 128 bits, or 1), one row per voxel.
// Two launches each way: partial results of the slices, then every block combines its instance's partial results in
// fixed order and goes over its slice. Small instances: one launch, a block does all slices.
// Traffic, in passes over the tensor: forward reads x twice (and the residual once), writes y once. Backward reads x and
// dy twice, writes dx once; with residual and activation the first half reads y, too, and leaves dres = g, which the
// second half reads in the place of dy and y. Without residual the side of the activation follows from x.
// Source: Ulyanov et al. 2016, arXiv 1607.08022; merging of moments: Chan, Golub, LeVeque 1979. docs/kernels/norm.md.
#include "vec.cuh"

constexpr int kThreads = 512;
constexpr int kTileChannels = 64;
constexpr int kRun = 32;  // voxels summed relative to one estimate of the mean
constexpr float kEps = 1e-5f;

struct NormShape {
    long long voxels;  // of an instance
    int channels;
    int width;   // channels to an access, 8 or 1
    int tile;    // accesses of a voxel that a block makes: tile * width <= kTileChannels
    int slices;  // parts of an instance
};

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

struct NormGradParams {
    const bf16* x;
    const bf16* y;      // its sign is that of the activation's input; null: see beta
    const bf16* dy;
    const float* gamma;
    const float* beta;  // the sign follows from x; null, like y: no activation
    const float* stats;
    float* partial;  // [instances, slices, channels, 2]: sum g, sum g xhat
    bf16* dx;        // these four may be null
    bf16* dres;
    float* dgamma;
    float* dbeta;
    NormShape shape;
    int instances;
    float slope;
    int add_dx, add_dres, add_dgamma, add_dbeta;
    int early_dres;  // the first half writes dres, the second reads it
    int reserved;
};

// Per-channel numbers of a block's tile in shared memory: kWhich times kTileChannels floats. Forward uses the first
// three; backward sums with kMean, kScale, kShift and applies with all.
enum Coefficient { kMean, kScale, kShift, kOffset, kTilt, kCoefficients };


// First voxel of a slice.
__device__ __forceinline__ long long slice_begin(const NormShape& s, int slice) {
    return s.voxels * slice / s.slices;
}

// Where a thread stands: it takes kW channels of every rows-th voxel of the slice, `count` voxels in all.
template <int kW> struct Place {
    int rows, row, group, channel, count;
    long long first;  // voxel
    long long step;   // elements from one voxel of this thread to its next

    __device__ __forceinline__ explicit Place(const NormShape& s)
        : rows(kThreads / s.tile),
          row(static_cast<int>(threadIdx.x) / s.tile),
          group(static_cast<int>(threadIdx.x) % s.tile),
          channel((static_cast<int>(blockIdx.y) * s.tile + group) * kW),
          first(slice_begin(s, static_cast<int>(blockIdx.x)) + row),
          step(static_cast<long long>(rows) * s.channels) {
        const long long left = slice_begin(s, static_cast<int>(blockIdx.x) + 1) - first;
        const bool some = row < rows && channel < s.channels && left > 0;
        count = some ? static_cast<int>(divide(left + rows - 1, rows).quotient) : 0;
    }

    // Whether this thread holds the result of its group after reduce_rows.
    __device__ __forceinline__ bool leads(const NormShape& s) const { return row == 0 && channel < s.channels; }

    // Of the first element in instance n.
    __device__ __forceinline__ long long offset(const NormShape& s, int n) const {
        return (n * s.voxels + first) * s.channels + channel;
    }
};

// kW channels of one coefficient, from shared memory.
template <int kW>
__device__ __forceinline__ void coefficient(const float* all, Coefficient which, const Place<kW>& at, float (&v)[kW]) {
#pragma unroll
    for (int i = 0; i < kW; ++i) v[i] = all[which * kTileChannels + at.group * kW + i];
}

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

// x, dy and, if the sign is to come from there, y of the next kUnroll voxels of a thread; zeros where `left` ends before.
template <int kW, int kUnroll> struct Sources {
    Raw<kW> x[kUnroll], dy[kUnroll], y[kUnroll];

    __device__ __forceinline__ Sources(const NormGradParams& p, const bf16* dy_from, const bf16* y_from,
                                       long long offset, long long step, int left) {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            x[u] = u < left ? load_raw<kW>(p.x + offset + u * step) : Raw<kW>{};
            dy[u] = u < left ? load_raw<kW>(dy_from + offset + u * step) : Raw<kW>{};
            y[u] = u < left && y_from != nullptr ? load_raw<kW>(y_from + offset + u * step) : Raw<kW>{};
        }
    }
};

// Of one voxel: xc = x - mean, and the gradient before the activation. Its side is told by the sign of y, or of
// (x - mean) scale + shift, computed as forward does.
template <int kW> struct Side {
    bool from_y, from_x;
    float slope;

    __device__ __forceinline__ void operator()(Raw<kW> x, Raw<kW> dy, Raw<kW> y, const float (&mean)[kW],
                                               const float (&scale)[kW], const float (&shift)[kW], float (&xc)[kW],
                                               float (&g)[kW]) const {
        float sign[kW];
        unpack(x, xc);
        unpack(dy, g);
        unpack(y, sign);
#pragma unroll
        for (int i = 0; i < kW; ++i) {
            xc[i] -= mean[i];
            if (from_x) sign[i] = fmaf(xc[i], scale[i], shift[i]);
            if (from_x || from_y) g[i] *= sign[i] > 0.0f ? 1.0f : slope;
        }
    }
};

// Coefficients of the tile that do not need the sums: mean, scale = gamma rstd, shift = beta. A barrier must follow.
__device__ __forceinline__ void load_coefficients(const NormGradParams& p, int n, float* coefficients) {
    const NormShape& s = p.shape;
    const int local = static_cast<int>(threadIdx.x), channel = static_cast<int>(blockIdx.y) * s.tile * s.width + local;
    if (local >= s.tile * s.width || channel >= s.channels) return;
    const float2 stats = global_load(reinterpret_cast<const float2*>(p.stats) + static_cast<long long>(n) * s.channels + channel);
    coefficients[kMean * kTileChannels + local] = stats.x;
    coefficients[kScale * kTileChannels + local] = stats.y * global_load(p.gamma + channel);
    coefficients[kShift * kTileChannels + local] = p.beta != nullptr ? global_load(p.beta + channel) : 0.0f;
    coefficients[kTilt * kTileChannels + local] = stats.y;  // rstd, until the sums are known
}

// sum g and sum g xhat over this thread's voxels.
template <int kW>
__device__ __forceinline__ void slice_sums(const NormGradParams& p, const Place<kW>& at, int n,
                                           const float* coefficients, float (&sums)[2 * kW]) {
    constexpr int kUnroll = 2;
    if (at.count == 0) return;
    float mean[kW], scale[kW], shift[kW], rstd[kW];
    coefficient(coefficients, kMean, at, mean);
    coefficient(coefficients, kScale, at, scale);
    coefficient(coefficients, kShift, at, shift);
    const Side<kW> side = {p.y != nullptr, p.beta != nullptr, p.slope};
    long long place = at.offset(p.shape, n);
#pragma unroll 1
    for (int v = 0; v < at.count; v += kUnroll, place += kUnroll * at.step) {
        const Sources<kW, kUnroll> from(p, p.dy, p.y, place, at.step, at.count - v);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            float g[kW], xc[kW];
            side(from.x[u], from.dy[u], from.y[u], mean, scale, shift, xc, g);
#pragma unroll
            for (int i = 0; i < kW; ++i) {
                // Behind the end dy is 0, and with it g.
                sums[i] += g[i];
                sums[kW + i] = fmaf(g[i], xc[i], sums[kW + i]);
            }
            if (p.early_dres != 0 && v + u < at.count) store(p.dres + place + u * at.step, g);
        }
    }
    coefficient(coefficients, kTilt, at, rstd);
#pragma unroll
    for (int i = 0; i < kW; ++i) sums[kW + i] *= rstd[i];
}

// The coefficients of dx = scale g - offset - (x - mean) tilt, from the sums of the instance, in row 0.
__device__ __forceinline__ void finish_sums(const NormShape& s, float sum_g, float sum_gx, int local,
                                            float* coefficients) {
    const float share = 1.0f / static_cast<float>(s.voxels);
    const float scale = coefficients[kScale * kTileChannels + local], rstd = coefficients[kTilt * kTileChannels + local];
    coefficients[kOffset * kTileChannels + local] = scale * sum_g * share;
    coefficients[kTilt * kTileChannels + local] = scale * rstd * sum_gx * share;
}

// The same from the partial results of all slices. Threads stand in rows of one channel each.
__device__ __forceinline__ void combine_sums(const NormGradParams& p, float* scratch, float* coefficients) {
    const NormShape& s = p.shape;
    const int tile = s.tile * s.width, rows = kThreads / tile;
    const int local = static_cast<int>(threadIdx.x) % tile, row = static_cast<int>(threadIdx.x) / tile;
    const int channel = static_cast<int>(blockIdx.y) * tile + local;
    float sums[2] = {};
    if (channel < s.channels && row < rows) {
        const float2* from = reinterpret_cast<const float2*>(p.partial) +
                             static_cast<long long>(blockIdx.z) * s.slices * s.channels + channel;
#pragma unroll 4
        for (int slice = row; slice < s.slices; slice += rows) {
            const float2 v = global_load(from + static_cast<long long>(slice) * s.channels);
            sums[0] += v.x;
            sums[1] += v.y;
        }
    }
    reduce_rows<kThreads>(sums, row, rows, tile, scratch, Add{});
    if (row == 0 && channel < s.channels) finish_sums(s, sums[0], sums[1], local, coefficients);
    __syncthreads();
}

// dx and dres of this thread's voxels.
template <int kW>
__device__ __forceinline__ void apply_gradient(const NormGradParams& p, const Place<kW>& at, int n, bool early,
                                               const float* coefficients) {
    constexpr int kUnroll = 2;
    if (at.count == 0) return;
    float mean[kW], scale[kW], shift[kW], offset[kW] = {}, tilt[kW] = {};
    coefficient(coefficients, kMean, at, mean);
    coefficient(coefficients, kScale, at, scale);
    coefficient(coefficients, kShift, at, shift);
    if (p.dx != nullptr) {
        coefficient(coefficients, kOffset, at, offset);
        coefficient(coefficients, kTilt, at, tilt);
    }
    const bf16* y_from = early ? nullptr : p.y;
    const Side<kW> side = {y_from != nullptr, p.beta != nullptr, p.slope};
    long long place = at.offset(p.shape, n);
#pragma unroll 1
    for (int v = 0; v < at.count; v += kUnroll, place += kUnroll * at.step) {
        const Sources<kW, kUnroll> from(p, early ? p.dres : p.dy, y_from, place, at.step, at.count - v);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            if (v + u >= at.count) break;
            const long long to = place + u * at.step;
            float g[kW], xc[kW];
            side(from.x[u], from.dy[u], from.y[u], mean, scale, shift, xc, g);
#pragma unroll
            for (int i = 0; i < kW; ++i) xc[i] = scale[i] * g[i] - offset[i] - xc[i] * tilt[i];
            if (p.dx != nullptr) put(p.dx + to, xc, p.add_dx != 0);
            if (p.dres != nullptr && !early) put(p.dres + to, g, p.add_dres != 0);
        }
    }
}

__device__ __forceinline__ void put_parameters(const NormGradParams& p, int channel, float sum_g, float sum_gx) {
    float beta[1] = {sum_g}, gamma[1] = {sum_gx};
    if (p.dbeta != nullptr) put(p.dbeta + channel, beta, p.add_dbeta != 0);
    if (p.dgamma != nullptr) put(p.dgamma + channel, gamma, p.add_dgamma != 0);
}

// dgamma and dbeta of the channels that this block is due: the sums of all slices of all instances, in order.
__device__ __forceinline__ void parameter_gradients(const NormGradParams& p) {
    const NormShape& s = p.shape;
    const int blocks = static_cast<int>(gridDim.x * gridDim.y * gridDim.z);
    const int block = static_cast<int>((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
    const long long count = static_cast<long long>(p.instances) * s.slices;
    for (int channel = block; channel < s.channels; channel += blocks) {
        float sums[2] = {};
        for (long long i = threadIdx.x; i < count; i += kThreads) {
            const float2 v = global_load(reinterpret_cast<const float2*>(p.partial) + i * s.channels + channel);
            sums[0] += v.x;
            sums[1] += v.y;
        }
        block_sum<kThreads, 2>(sums);
        if (threadIdx.x == 0) put_parameters(p, channel, sums[0], sums[1]);
    }
}

template <int kW> __device__ __forceinline__ void grad_stats_kernel(const NormGradParams& p, float* scratch, float* coefficients) {
    const NormShape& s = p.shape;
    const Place<kW> at(s);
    const int n = static_cast<int>(blockIdx.z);
    float sums[2 * kW] = {};
    load_coefficients(p, n, coefficients);
    __syncthreads();
    slice_sums<kW>(p, at, n, coefficients, sums);
    reduce_rows<kThreads>(sums, at.row, at.rows, s.tile, scratch, Add{});
    if (!at.leads(s)) return;
    const long long slice = static_cast<long long>(blockIdx.z) * s.slices + blockIdx.x;
    float2* out = reinterpret_cast<float2*>(p.partial) + slice * s.channels + at.channel;
#pragma unroll
    for (int i = 0; i < kW; ++i) global_store(out + i, make_float2(sums[i], sums[kW + i]));
}

KERNEL(norm_grad_stats_bf16, NormGradParams, 512, 1) {
    SHARED_ARRAY(float, scratch, 16 * kThreads);
    SHARED_ARRAY(float, coefficients, kCoefficients * kTileChannels);
    if (p.shape.width == 8) {
        grad_stats_kernel<8>(p, scratch, coefficients);
    } else {
        grad_stats_kernel<1>(p, scratch, coefficients);
    }
}

KERNEL(norm_grad_apply_bf16, NormGradParams, 512, 1) {
    SHARED_ARRAY(float, scratch, 2 * kThreads);
    SHARED_ARRAY(float, coefficients, kCoefficients * kTileChannels);
    if (p.dx != nullptr || (p.dres != nullptr && p.early_dres == 0)) {
        const int n = static_cast<int>(blockIdx.z);
        load_coefficients(p, n, coefficients);
        __syncthreads();
        if (p.dx != nullptr) combine_sums(p, scratch, coefficients);
        if (p.shape.width == 8) {
            apply_gradient(p, Place<8>(p.shape), n, p.early_dres != 0, coefficients);
        } else {
            apply_gradient(p, Place<1>(p.shape), n, p.early_dres != 0, coefficients);
        }
    }
    if (p.dgamma != nullptr || p.dbeta != nullptr) parameter_gradients(p);
}

// All of backward for a tile of channels of every instance, one after the other.
template <int kW>
__device__ __forceinline__ void grad_small_kernel(const NormGradParams& p, float* scratch, float* coefficients) {
    const Place<kW> at(p.shape);
    float gamma[kW] = {}, beta[kW] = {};
    for (int n = 0; n < p.instances; ++n) {
        float sums[2 * kW] = {};
        load_coefficients(p, n, coefficients);
        __syncthreads();
        slice_sums<kW>(p, at, n, coefficients, sums);
        reduce_rows<kThreads>(sums, at.row, at.rows, p.shape.tile, scratch, Add{});
        __syncthreads();  // rstd was read from where the sums now go
        if (at.leads(p.shape)) {
#pragma unroll
            for (int i = 0; i < kW; ++i) {
                finish_sums(p.shape, sums[i], sums[kW + i], at.group * kW + i, coefficients);
                beta[i] += sums[i];
                gamma[i] += sums[kW + i];
            }
        }
        __syncthreads();
        if (p.dx != nullptr || p.dres != nullptr) apply_gradient(p, at, n, false, coefficients);
        __syncthreads();  // before the next instance's coefficients
    }
    if (!at.leads(p.shape)) return;
#pragma unroll
    for (int i = 0; i < kW; ++i) put_parameters(p, at.channel + i, beta[i], gamma[i]);
}

KERNEL(norm_grad_small_bf16, NormGradParams, 512, 1) {
    SHARED_ARRAY(float, scratch, 16 * kThreads);
    SHARED_ARRAY(float, coefficients, kCoefficients * kTileChannels);
    if (p.shape.width == 8) {
        grad_small_kernel<8>(p, scratch, coefficients);
    } else {
        grad_small_kernel<1>(p, scratch, coefficients);
    }
}
