// conv3d/reduce.cuh: what finishes split sums, always in the order of the splits, and the bias gradient.
#pragma once

#include "igemm.cuh"

// out[i] = or += sum over splits of part[split, i]
struct Conv3dSumSplitsParams {
    const float* part;  // [splits, len]
    float* out;         // [len]
    long long len;
    int splits, add;
};

__device__ __forceinline__ float sum_splits(const float* part, long long len, int splits) {
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < splits; ++s) sum += global_load(part + s * len);
    return sum;
}

// y[row, channel] = or += bias[channel] + sum over splits of part[split, row, channel], rounded once;
// gelu[row, channel] = GELU of the rounded y
struct Conv3dSumRowsParams {
    const float* part;  // [splits, rows, channels]
    const float* bias;  // [channels] or null
    bf16* y;            // [rows, y_stride], from y_offset on
    bf16* gelu;         // [rows, channels] or null
    long long len;      // rows * channels
    int channels, y_stride, y_offset, splits, add, unused;
};

__device__ __forceinline__ void sum_rows(const Conv3dSumRowsParams& p, long long i) {
    const int channel = static_cast<int>(i % p.channels);
    bf16* y = p.y + i / p.channels * p.y_stride + p.y_offset + channel;
    float v = sum_splits(p.part + i, p.len, p.splits);
    if (p.bias != nullptr) v += global_load(p.bias + channel);
    if (p.add != 0) v += to_float(global_load(y));
    const bf16 rounded = to_bf16(v);
    global_store(y, rounded);
    if (p.gelu != nullptr) global_store(p.gelu + i, gelu(rounded));
}

// part[blockIdx.y, k] = sum of dy[row, k] over the block's rows
struct Conv3dBiasGradParams {
    const bf16* dy;  // [rows, dy_stride], channels 0 to `channels`; both counts multiples of 8, or neither
    float* part;     // [gridDim.y, channels]
    long long rows;
    int channels, rows_per_block, dy_stride, unused;
};

constexpr int kBiasThreads = 256, kBiasChannels = 64, kBiasRows = kBiasThreads / 8;

// Thread t: channels 8 (t % 8) on, rows t / 8, t / 8 + 32, ...; then 64 threads add the 32 sums of a channel in order.
__device__ __forceinline__ void bias_grad(const Conv3dBiasGradParams& p, float* sums) {
    const int column = static_cast<int>(threadIdx.x) % 8 * 8, line = static_cast<int>(threadIdx.x) / 8;
    const int k = static_cast<int>(blockIdx.x) * kBiasChannels + column;
    const long long begin = static_cast<long long>(blockIdx.y) * p.rows_per_block;
    const long long end = begin + p.rows_per_block < p.rows ? begin + p.rows_per_block : p.rows;
    const bool aligned = p.channels % 8 == 0;
    float sum[8] = {};
    if (k < p.channels) {
#pragma unroll 4
        for (long long row = begin + line; row < end; row += kBiasRows) {
            float v[8];
            const bf16* from = p.dy + row * p.dy_stride + k;
            if (aligned) {
                load_bf16x8(from, v);
            } else {
                unpack_bf16x8(load_ragged(from, p.channels - k), v);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] += v[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[line * kBiasChannels + column + i] = sum[i];
    __syncthreads();
    const int channel = static_cast<int>(blockIdx.x) * kBiasChannels + static_cast<int>(threadIdx.x);
    if (threadIdx.x < kBiasChannels && channel < p.channels) {
        float total = 0.0f;
        for (int i = 0; i < kBiasRows; ++i) total += sums[i * kBiasChannels + threadIdx.x];
        global_store(p.part + static_cast<size_t>(blockIdx.y) * p.channels + channel, total);
    }
}
