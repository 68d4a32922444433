// hide_blocks.cu: hides blocks of voxels of a map.
//
//   y = (1 - m) x;  dx = (1 - m) dy: both passes are the same kernel
//
// m is the weight of the block that an element lies in. Threads go over pieces of 8 elements, where a row of a block is
// a multiple of 8, else over single ones; grid ceil(elements / 2048).
// Traffic: reads the source where m is not 1, writes the result; the mask comes from the caches.
// Source: He et al. 2022, arXiv 2111.06377.
#include "block_mask.cuh"

struct HideBlocksParams {
    const bf16* from;
    const float* mask;
    bf16* to;
    long long elements;
    BlocksParams blocks;
    int add;
    int reserved;
};

KERNEL(hide_blocks_bf16, HideBlocksParams, 256, 4) {
    for_each_piece(p.elements, is_wide(p.blocks, p.from, p.to), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        const float shown = 1.0f - weight_of(p.blocks, p.mask, at);
        float v[kW] = {};
        if (shown != 0.0f) {
            load<kW>(p.from + at, v);
#pragma unroll
            for (int i = 0; i < kW; ++i) v[i] *= shown;
        }
        put<kW>(p.to + at, v, p.add != 0);
    });
}
