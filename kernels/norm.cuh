// norm.cuh: how both directions of the instance norm cut their work.
//
// Grid (slices, tiles, instances): a block takes a tile of at most 64 channels of a slice of an instance's voxels. Its
// threads stand in rows of `tile` accesses (8 channels in 128 bits, or 1), one row per voxel.
// Three launches each way: partial results of the slices, or of the blocks of a convolution beside them; a few blocks
// that combine those of an instance in fixed order (norm_finish_f32, norm_bwd_finish_f32: grid by channels); then every
// block goes over its slice. Small instances: one launch, a block does all slices. docs/kernels/norm.md.
#pragma once

#include "lang/vec.cuh"

constexpr int kThreads = 512;
constexpr int kTileChannels = 64;
// Of the kernels that combine parts: few channels to a block, 32 bytes of each part, so that many blocks and rows share
// the parts.
constexpr int kFinishChannels = 4, kFinishRows = kThreads / kFinishChannels;

struct NormShape {
    long long voxels;  // of an instance
    int channels;
    int width;   // channels to an access, 8 or 1
    int tile;    // accesses of a voxel that a block makes: tile * width <= kTileChannels
    int slices;  // parts of an instance
};

// Per-channel numbers of a block's tile in shared memory: kWhich times kTileChannels floats. Forward uses the first
// three; backward sums with kMean, kScale, kShift and applies with all.
enum Coefficient { kMean, kScale, kShift, kOffset, kTilt, kCoefficients };

// First voxel of a slice.
__device__ __forceinline__ long long slice_begin(const NormShape& s, int slice) { return s.voxels * slice / s.slices; }

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
