// conv3d/epilogue.cuh: what a convolution leaves for the instance norm beside it, from the values it has in registers:
// one partial result for each block and channel, which norm_finish_f32 and norm_bwd_finish_f32 combine in order.
//
//   forward: mean and sum of squared deviations of the output, as rounded, and the number of voxels
//   input gradient: sum g and sum g xhat, g = dy act' of the norm whose output's gradient dy is
//
// The norm then does not read its input (forward) or its input and dy (backward) for them: saves one pass forward, and
// one backward (x is read here, in the place of x and dy there). Where g takes the place of dy (a norm with residual
// and activation), the norm reads neither dy nor y at all.
// Moments are sums of squares about the mean of a warp's rows, merged by Chan's formula: warps, then blocks. Rows of a
// warp are added by exchange between lanes, each step of which halves the channels a lane holds. All orders are fixed.
// Source: kernels/norm.cu, kernels/norm_bwd.cu; moments.cuh.
#pragma once

#include "tile.cuh"
#include "../moments.cuh"

struct Conv3dNorm {
    float* partial;      // [items, parts, channels, 2]; null: there is no norm
    float* counts;       // [items, parts], forward only
    const bf16* x;       // of the norm, shaped as the gradient; this and the rest for the input gradient only
    const bf16* y;       // its sign is that of the activation's input; null: see beta
    const float* stats;  // [items, channels, 2]: mean, rstd
    const float* gamma;
    const float* beta;  // the sign follows from x; null, like y: no activation
    bf16* g;            // with y: where g is written, and the gradient is not
    float slope;
    int unused;
};

// Lanes that agree modulo kFirst hold kV values each. Lane `fold_lane(i)` plus that remainder gets the sum of value i.
template <int kFirst, int kV> __device__ __forceinline__ int fold_lane(int i) {
    int lane = 0;
#pragma unroll
    for (int left = kV / 2, step = kFirst; left > 0; left /= 2, step *= 2) lane |= (i & left) != 0 ? step : 0;
    return lane;
}

// Which value the lane gets.
template <int kFirst, int kV> __device__ __forceinline__ int folded() {
    int i = 0;
#pragma unroll
    for (int left = kV / 2, step = kFirst; left > 0; left /= 2, step *= 2) i |= (lane_id() & step) != 0 ? left : 0;
    return i;
}

template <int kFirst, int kV> __device__ __forceinline__ float fold(float (&v)[kV]) {
    static_assert(kFirst * kV <= kWarp, "a lane for every value");
#pragma unroll
    for (int step = kFirst, left = kV; step < kWarp; step *= 2) {
        if (left > 1) {
            left /= 2;
            const bool upper = (lane_id() & step) != 0;
#pragma unroll
            for (int i = 0; i < left; ++i) {
                const float other = __shfl_xor_sync(kFullMask, upper ? v[i] : v[i + left], step);
                v[i] = (upper ? v[i + left] : v[i]) + other;
            }
        } else {
            v[0] += __shfl_xor_sync(kFullMask, v[0], step);
        }
    }
    return v[0];
}

// Back to the lanes that hold the values.
template <int kFirst, int kV> __device__ __forceinline__ void unfold(float folded, float (&v)[kV]) {
#pragma unroll
    for (int i = 0; i < kV; ++i) v[i] = __shfl_sync(kFullMask, folded, lane_id() % kFirst + fold_lane<kFirst, kV>(i));
}

// Mean, scale and shift of one channel of the norm, as norm_bwd.cu has them, and how a voxel uses them.
struct NormSide {
    float mean, scale, shift;

    // Each lane loads those of one channel, which others get from it: far fewer accesses than every lane for all its
    // own.
    __device__ __forceinline__ static NormSide load(const Conv3dNorm& norm, size_t item_first, int channel) {
        const float2 stats = global_load(reinterpret_cast<const float2*>(norm.stats) + item_first + channel);
        NormSide side = {stats.x, 0.0f, 0.0f};
        if (norm.beta != nullptr) {
            side.scale = stats.y * global_load(norm.gamma + channel);
            side.shift = global_load(norm.beta + channel);
        }
        return side;
    }

    __device__ __forceinline__ NormSide of_lane(const Conv3dNorm& norm, int lane) const {
        NormSide side = {__shfl_sync(kFullMask, mean, lane), 0.0f, 0.0f};
        if (norm.beta != nullptr) {
            side.scale = __shfl_sync(kFullMask, scale, lane);
            side.shift = __shfl_sync(kFullMask, shift, lane);
        }
        return side;
    }

    // From x: x - mean in its place, and g in the place of dy, if the side of the activation is to be told from x.
    __device__ __forceinline__ void gate(const Conv3dNorm& norm, float& dy, float& x) const {
        x -= mean;
        if (norm.beta != nullptr) dy *= fmaf(x, scale, shift) > 0.0f ? 1.0f : norm.slope;
    }
};

__device__ __forceinline__ float norm_rstd(const Conv3dNorm& norm, size_t item_first, int channel) {
    return global_load(reinterpret_cast<const float2*>(norm.stats) + item_first + channel).y;
}

// The copy of a staged tile (store_tile) to memory, with the moments of its rows: of channel lane % kN * 8 + folded.
// `rows`: how many there are.
template <int kM, int kN, class Piece>
__device__ __forceinline__ float2 copy_with_moments(const unsigned char* stage, Piece piece, float& rows) {
    constexpr int kPieces = kM * 16 * kN / kWarp;
    const int lane = lane_id(), n = lane % kN;
    float v[8], sum[8] = {}, mean[8];
    rows = 0.0f;
    unsigned inside = 0;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
        const int r = (j * kWarp + lane) / kN;
        bf16* out = piece(r, n);
        if (out == nullptr) continue;
        const uint4 value = *reinterpret_cast<const uint4*>(stage + chunk_offset<kN>(r, n));
        global_store(reinterpret_cast<uint4*>(out), value);
        unpack_bf16x8(value, v);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] += v[i];
        rows += 1.0f;
        inside |= 1u << j;
    }
#pragma unroll
    for (int step = kN; step < kWarp; step *= 2) rows += __shfl_xor_sync(kFullMask, rows, step);
    const float total = fold<kN>(sum), folded_mean = rows > 0.0f ? total / rows : 0.0f;
    unfold<kN>(folded_mean, mean);
    float square[8] = {};
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
        if ((inside >> j & 1) == 0) continue;
        unpack_bf16x8(*reinterpret_cast<const uint4*>(stage + chunk_offset<kN>((j * kWarp + lane) / kN, n)), v);
#pragma unroll
        for (int i = 0; i < 8; ++i) square[i] = fmaf(v[i] - mean[i], v[i] - mean[i], square[i]);
    }
    return make_float2(folded_mean, fold<kN>(square));
}

// The same with the sums of g and g xhat. `base`: where the gradient begins of which `piece` gives addresses; `first`:
// the tile's first channel of `channels`.
template <int kM, int kN, class Piece>
__device__ __forceinline__ float2 copy_with_sums(const Conv3dNorm& norm, const unsigned char* stage, Piece piece,
                                                 const bf16* base, int item, int first, int channels) {
    constexpr int kPieces = kM * 16 * kN / kWarp, kAtOnce = 2;
    const int lane = lane_id(), n = lane % kN;
    const size_t item_first = static_cast<size_t>(item) * channels;
    const int channel = first + n * 8 + folded<kN, 8>();
    const bool present = channel < channels;
    const NormSide mine = present ? NormSide::load(norm, item_first, channel) : NormSide{};
    NormSide side[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) side[i] = mine.of_lane(norm, n + fold_lane<kN, 8>(i));
    float sum_g[8] = {}, sum_gx[8] = {};
#pragma unroll
    for (int j = 0; j < kPieces; j += kAtOnce) {
        bf16* out[kAtOnce];
        uint4 x_raw[kAtOnce], y_raw[kAtOnce] = {};
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
            out[u] = piece(((j + u) * kWarp + lane) / kN, n);
            if (out[u] == nullptr) continue;
            x_raw[u] = global_load(reinterpret_cast<const uint4*>(norm.x + (out[u] - base)));
            if (norm.y != nullptr) y_raw[u] = global_load(reinterpret_cast<const uint4*>(norm.y + (out[u] - base)));
        }
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
            if (out[u] == nullptr) continue;
            uint4 value = *reinterpret_cast<const uint4*>(stage + chunk_offset<kN>(((j + u) * kWarp + lane) / kN, n));
            float g[8], x[8], y[8];
            unpack_bf16x8(value, g);
            unpack_bf16x8(x_raw[u], x);
            if (norm.y != nullptr) {
                unpack_bf16x8(y_raw[u], y);
#pragma unroll
                for (int i = 0; i < 8; ++i) g[i] *= y[i] > 0.0f ? 1.0f : norm.slope;
                value = pack_bf16x8(g);  // the sums are those of the values that the norm reads
                unpack_bf16x8(value, g);
                out[u] = norm.g + (out[u] - base);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                side[i].gate(norm, g[i], x[i]);
                sum_g[i] += g[i];
                sum_gx[i] = fmaf(g[i], x[i], sum_gx[i]);
            }
            global_store(reinterpret_cast<uint4*>(out[u]), value);
        }
    }
    const float g = fold<kN>(sum_g), gx = fold<kN>(sum_gx);
    return make_float2(g, present ? gx * norm_rstd(norm, item_first, channel) : 0.0f);
}

// The block's result from those of its warps, of which kWN stand side by side with kWidth channels each: `mine` of
// channel `channel` of the warp, by the lanes that hold one. `shared`: (8 kWidth + 4) bytes for each warp, which no
// warp uses any more. `first`: the block's first channel; `part`: its number among the parts of all items.
template <int kWarps, int kWN, int kWidth, bool kMoments>
__device__ __forceinline__ void put_part(const Conv3dNorm& norm, unsigned char* shared, float2 mine, float rows,
                                         bool holds, int channel, long long part, int first, int channels) {
    float2* all = reinterpret_cast<float2*>(shared);
    float* counts = reinterpret_cast<float*>(all + kWarps * kWidth);
    if (holds) all[warp_id() * kWidth + channel] = mine;
    if (lane_id() == 0) counts[warp_id()] = rows;
    __syncthreads();
    const int t = static_cast<int>(threadIdx.x);
    if (t >= kWN * kWidth || first + t >= channels) return;
    Moments<1> m = {};
#pragma unroll
    for (int w = t / kWidth; w < kWarps; w += kWN) {
        const float2 v = all[w * kWidth + t % kWidth];
        if (kMoments) {
            const Moments<1> other = {v.x, v.y, counts[w]};
            Merge{}(m, other);
        } else {
            m[0] += v.x;
            m[1] += v.y;
        }
    }
    global_store(reinterpret_cast<float2*>(norm.partial) + part * channels + first + t, make_float2(m[0], m[1]));
    if (kMoments && first + t == 0) global_store(norm.counts + part, m[2]);
}

// store_tile, with the part of a norm if there is one. `item` and `first` as in copy_with_sums.
template <bool kGradient, int kM, int kN, class Piece>
__device__ __forceinline__ float2 store_tile_for_norm(const Conv3dNorm& norm, const float (&acc)[kM][kN][4],
                                                      unsigned char* stage, const float (&shift)[kN][2], bool add,
                                                      Piece piece, const bf16* base, int item, int first, int channels,
                                                      float& rows) {
    stage_tile<kM, kN>(acc, stage, shift, add, piece);
    if (norm.partial == nullptr) {
        copy_tile<kM, kN>(stage, piece);
        return make_float2(0.0f, 0.0f);
    }
    const float2 mine = kGradient ? copy_with_sums<kM, kN>(norm, stage, piece, base, item, first, channels)
                                  : copy_with_moments<kM, kN>(stage, piece, rows);
    __syncwarp();  // the stage may be written again
    return mine;
}
