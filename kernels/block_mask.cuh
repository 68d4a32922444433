// block_mask.cuh: a mask with a weight for each block of voxels of a map [N, D, H, W, C].
#pragma once

#include "lang/vec.cuh"

struct BlocksParams {
    int extent[3];  // of the map (z, y, x)
    int cells[3];   // blocks along each axis
    int block[3];
    int channels;
};

// Weight of the block that element `at` lies in.
__device__ __forceinline__ float weight_of(const BlocksParams& b, const float* mask, long long at) {
    const Quotient line = divide(at, static_cast<long long>(b.extent[2]) * b.channels);
    const Quotient plane = divide(line.quotient, b.extent[1]);
    const Quotient item = divide(plane.quotient, b.extent[0]);
    const int x = static_cast<int>(line.remainder) / (b.block[2] * b.channels);
    const int y = static_cast<int>(plane.remainder) / b.block[1], z = static_cast<int>(item.remainder) / b.block[0];
    return global_load(mask + ((item.quotient * b.cells[0] + z) * b.cells[1] + y) * b.cells[2] + x);
}

// Whether pieces of 8 elements lie in one block each, and may be read at once.
template <class... Pointers> __device__ __forceinline__ bool is_wide(const BlocksParams& b, const Pointers*... p) {
    return b.block[2] * b.channels % 8 == 0 && aligned16(p...);
}
