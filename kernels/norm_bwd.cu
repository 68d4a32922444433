// norm_bwd.cu: backward pass of the instance norm of norm.cu.
//
//   g = dy act'(y);  dbeta = sum g;  dgamma = sum g xhat;  dres = g
//   dx = gamma rstd (g - mean(g) - xhat mean(g xhat)), xhat = (x - mean) rstd
//
// Grid: norm.cuh. Traffic, in passes over the tensor: reads x and dy twice, writes dx once. With residual and
// activation the first half reads y, too, and leaves dres = g, which the second half reads in the place of dy. Without
// residual the side of the activation follows from x. Where the convolution that made dy left the sums of its blocks,
// and g in the place of dy (conv3d/epilogue.cuh), only the second half runs: reads x and dy once, writes dx once.
#include "norm.cuh"

struct NormGradParams {
    const bf16* x;
    const bf16* y;  // its sign is that of the activation's input; null: see beta
    const bf16* dy;
    const float* gamma;
    const float* beta;  // the sign follows from x; null, like y: no activation
    const float* stats;
    float* partial;  // [instances, slices, channels, 2]: sum g, sum g xhat
    float* sums;     // [instances, channels, 2]: the same of all parts
    bf16* dx;        // these four may be null; the first half writes dres only where it is given dres
    bf16* dres;
    float* dgamma;  // these two by norm_bwd_small_bf16
    float* dbeta;
    NormShape shape;
    int instances;
    float slope;
    int add_dx, add_dres, add_dgamma, add_dbeta;
};

struct NormGradFinishParams {
    const float* partial;  // [instances, parts, channels, 2]
    float* sums;           // [instances, channels, 2]
    float* dgamma;         // these two may be null
    float* dbeta;
    int instances, parts, channels, add_dgamma, add_dbeta, reserved;
};

// x, dy and, if the sign is to come from there, y of the next kUnroll voxels of a thread; zeros where `left` ends
// before.
template <int kW, int kUnroll> struct Sources {
    Raw<kW> x[kUnroll], dy[kUnroll], y[kUnroll];

    __device__ __forceinline__ Sources(const NormGradParams& p, long long offset, long long step, int left) {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            x[u] = u < left ? load_raw<kW>(p.x + offset + u * step) : Raw<kW>{};
            dy[u] = u < left ? load_raw<kW>(p.dy + offset + u * step) : Raw<kW>{};
            y[u] = u < left && p.y != nullptr ? load_raw<kW>(p.y + offset + u * step) : Raw<kW>{};
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
    const float2 stats =
        global_load(reinterpret_cast<const float2*>(p.stats) + static_cast<long long>(n) * s.channels + channel);
    coefficients[kMean * kTileChannels + local] = stats.x;
    coefficients[kScale * kTileChannels + local] = stats.y * global_load(p.gamma + channel);
    coefficients[kShift * kTileChannels + local] = p.beta != nullptr ? global_load(p.beta + channel) : 0.0f;
    coefficients[kTilt * kTileChannels + local] = stats.y;  // rstd, until the sums are known
}

// sum g and sum g xhat over this thread's voxels; `early`: dres = g, too.
template <int kW>
__device__ __forceinline__ void slice_sums(const NormGradParams& p, const Place<kW>& at, int n, bool early,
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
        const Sources<kW, kUnroll> from(p, place, at.step, at.count - v);
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
            if (early && v + u < at.count) store(p.dres + place + u * at.step, g);
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
    const float scale = coefficients[kScale * kTileChannels + local],
                rstd = coefficients[kTilt * kTileChannels + local];
    coefficients[kOffset * kTileChannels + local] = scale * sum_g * share;
    coefficients[kTilt * kTileChannels + local] = scale * rstd * sum_gx * share;
}

// dx and dres of this thread's voxels.
template <int kW>
__device__ __forceinline__ void apply_gradient(const NormGradParams& p, const Place<kW>& at, int n,
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
    const Side<kW> side = {p.y != nullptr, p.beta != nullptr, p.slope};
    long long place = at.offset(p.shape, n);
#pragma unroll 1
    for (int v = 0; v < at.count; v += kUnroll, place += kUnroll * at.step) {
        const Sources<kW, kUnroll> from(p, place, at.step, at.count - v);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            if (v + u >= at.count) break;
            const long long to = place + u * at.step;
            float g[kW], xc[kW];
            side(from.x[u], from.dy[u], from.y[u], mean, scale, shift, xc, g);
#pragma unroll
            for (int i = 0; i < kW; ++i) xc[i] = scale[i] * g[i] - offset[i] - xc[i] * tilt[i];
            if (p.dx != nullptr) put(p.dx + to, xc, p.add_dx != 0);
            if (p.dres != nullptr) put(p.dres + to, g, p.add_dres != 0);
        }
    }
}

template <class Params>
__device__ __forceinline__ void put_parameters(const Params& p, int channel, float sum_g, float sum_gx) {
    float beta[1] = {sum_g}, gamma[1] = {sum_gx};
    if (p.dbeta != nullptr) put(p.dbeta + channel, beta, p.add_dbeta != 0);
    if (p.dgamma != nullptr) put(p.dgamma + channel, gamma, p.add_dgamma != 0);
}

template <int kW>
__device__ __forceinline__ void grad_stats_kernel(const NormGradParams& p, float* scratch, float* coefficients) {
    const NormShape& s = p.shape;
    const Place<kW> at(s);
    const int n = static_cast<int>(blockIdx.z);
    float sums[2 * kW] = {};
    load_coefficients(p, n, coefficients);
    __syncthreads();
    slice_sums<kW>(p, at, n, p.dres != nullptr, coefficients, sums);
    reduce_rows<kThreads>(sums, at.row, at.rows, s.tile, scratch, Add{});
    if (!at.leads(s)) return;
    const long long slice = static_cast<long long>(blockIdx.z) * s.slices + blockIdx.x;
    float2* out = reinterpret_cast<float2*>(p.partial) + slice * s.channels + at.channel;
#pragma unroll
    for (int i = 0; i < kW; ++i) global_store(out + i, make_float2(sums[i], sums[kW + i]));
}

KERNEL(norm_bwd_stats_bf16, NormGradParams, 512, 1) {
    SHARED_ARRAY(float, scratch, 16 * kThreads);
    SHARED_ARRAY(float, coefficients, kCoefficients* kTileChannels);
    if (p.shape.width == 8) {
        grad_stats_kernel<8>(p, scratch, coefficients);
    } else {
        grad_stats_kernel<1>(p, scratch, coefficients);
    }
}

// Sums of the instances from their parts, kAtOnce instances at a time, and dgamma and dbeta, from all of them in order.
KERNEL(norm_bwd_finish_f32, NormGradFinishParams, 512, 2) {
    constexpr int kAtOnce = 4;
    SHARED_ARRAY(float, scratch, 2 * kAtOnce * kThreads);
    const int local = static_cast<int>(threadIdx.x) % kFinishChannels,
              row = static_cast<int>(threadIdx.x) / kFinishChannels;
    const int channel = static_cast<int>(blockIdx.x) * kFinishChannels + local;
    const float2* from = reinterpret_cast<const float2*>(p.partial) + channel;
    float gamma = 0.0f, beta = 0.0f;
    for (long long first = 0; first < p.instances; first += kAtOnce) {
        float sums[2 * kAtOnce] = {};
#pragma unroll 4
        for (int part = row; part < p.parts && channel < p.channels; part += kFinishRows) {
#pragma unroll
            for (int u = 0; u < kAtOnce; ++u) {
                if (first + u >= p.instances) continue;
                const float2 v = global_load(from + ((first + u) * p.parts + part) * p.channels);
                sums[2 * u] += v.x;
                sums[2 * u + 1] += v.y;
            }
        }
        reduce_rows<kThreads>(sums, row, kFinishRows, kFinishChannels, scratch, Add{});
        if (row != 0 || channel >= p.channels) continue;
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
            if (first + u >= p.instances) continue;
            global_store(reinterpret_cast<float2*>(p.sums) + (first + u) * p.channels + channel,
                         make_float2(sums[2 * u], sums[2 * u + 1]));
            beta += sums[2 * u];
            gamma += sums[2 * u + 1];
        }
    }
    if (row == 0 && channel < p.channels) put_parameters(p, channel, beta, gamma);
}

KERNEL(norm_bwd_apply_bf16, NormGradParams, 512, 1) {
    SHARED_ARRAY(float, coefficients, kCoefficients* kTileChannels);
    const NormShape& s = p.shape;
    const int n = static_cast<int>(blockIdx.z), local = static_cast<int>(threadIdx.x);
    const int tile = s.tile * s.width, channel = static_cast<int>(blockIdx.y) * tile + local;
    load_coefficients(p, n, coefficients);
    if (p.dx != nullptr && local < tile && channel < s.channels) {
        const long long at = static_cast<long long>(n) * s.channels + channel;
        const float2 sums = global_load(reinterpret_cast<const float2*>(p.sums) + at);
        finish_sums(s, sums.x, sums.y, local, coefficients);
    }
    __syncthreads();
    if (s.width == 8) {
        apply_gradient(p, Place<8>(s), n, coefficients);
    } else {
        apply_gradient(p, Place<1>(s), n, coefficients);
    }
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
        slice_sums<kW>(p, at, n, false, coefficients, sums);
        reduce_rows<kThreads>(sums, at.row, at.rows, p.shape.tile, scratch, Add{});
        // rstd was read from where the sums now go: the barriers of reduce_rows (at least 8 rows) lie between.
        if (at.leads(p.shape)) {
#pragma unroll
            for (int i = 0; i < kW; ++i) {
                finish_sums(p.shape, sums[i], sums[kW + i], at.group * kW + i, coefficients);
                beta[i] += sums[i];
                gamma[i] += sums[kW + i];
            }
        }
        __syncthreads();
        if (p.dx != nullptr || p.dres != nullptr) apply_gradient(p, at, n, coefficients);
        __syncthreads();  // before the next instance's coefficients
    }
    if (!at.leads(p.shape)) return;
#pragma unroll
    for (int i = 0; i < kW; ++i) put_parameters(p, at.channel + i, beta[i], gamma[i]);
}

KERNEL(norm_bwd_small_bf16, NormGradParams, 512, 1) {
    SHARED_ARRAY(float, scratch, 16 * kThreads);
    SHARED_ARRAY(float, coefficients, kCoefficients* kTileChannels);
    if (p.shape.width == 8) {
        grad_small_kernel<8>(p, scratch, coefficients);
    } else {
        grad_small_kernel<1>(p, scratch, coefficients);
    }
}
