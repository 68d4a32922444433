// masked_mse.cu: mean squared error between two maps over the blocks of voxels that a mask selects.
//
//   loss = sum m (p - t)^2 / sum m, 0 if all m are 0;  dp = dy 2 m (p - t) / sum m
//
// m is the weight of the block that an element lies in. Threads go over pieces of 8 elements, where a row of a block is
// a multiple of 8, else over single ones. Forward: grid of up to 512 slices, a block of threads for the sum of one;
// then one block adds the slices and the mask. Backward: grid ceil(elements / 2048). Sums in f32, in an order that
// depends on sizes only.
// Traffic: forward reads p and t where m is not 0, backward as well and writes dp; the mask comes from the caches.
// Source: He et al. 2022, arXiv 2111.06377.
#include "block_mask.cuh"

constexpr int kMseThreads = 256;

struct MaskedMseParams {
    const bf16* pred;
    const bf16* target;
    const float* mask;
    float* partial;  // [slices]
    long long elements;
    BlocksParams blocks;
};

struct MaskedMseFinishParams {
    const float* partial;
    const float* mask;
    float* loss;
    float* weight;
    long long cells;
    int slices;
    int cell_elements;  // of a block
};

struct MaskedMseBackwardParams {
    const bf16* pred;
    const bf16* target;
    const float* mask;
    const float* weight;  // one element
    const float* dy;      // one element
    bf16* dpred;
    long long elements;
    BlocksParams blocks;
    int add;
    int reserved;
};

KERNEL(masked_mse_fwd_bf16, MaskedMseParams, kMseThreads, 4) {
    float sum = 0.0f;
    for_each_piece(p.elements, is_wide(p.blocks, p.pred, p.target), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        const float m = weight_of(p.blocks, p.mask, at);
        if (m == 0.0f) return;
        float pred[kW], target[kW];
        load<kW>(p.pred + at, pred);
        load<kW>(p.target + at, target);
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < kW; ++i) {
            const float e = pred[i] - target[i];
            squares = fmaf(e, e, squares);
        }
        sum = fmaf(m, squares, sum);
    });
    sum = block_sum<kMseThreads>(sum);
    if (threadIdx.x == 0) global_store(p.partial + blockIdx.x, sum);
}

KERNEL(masked_mse_finish_f32, MaskedMseFinishParams, kMseThreads, 1) {
    float sums[2] = {};
    for (int i = static_cast<int>(threadIdx.x); i < p.slices; i += kMseThreads) sums[0] += global_load(p.partial + i);
    for (long long i = threadIdx.x; i < p.cells; i += kMseThreads) sums[1] += global_load(p.mask + i);
    block_sum<kMseThreads, 2>(sums);
    if (threadIdx.x != 0) return;
    const float weight = sums[1] * static_cast<float>(p.cell_elements);
    global_store(p.loss, weight > 0.0f ? sums[0] / weight : 0.0f);
    global_store(p.weight, weight);
}

KERNEL(masked_mse_bwd_bf16, MaskedMseBackwardParams, kMseThreads, 4) {
    const float weight = global_load(p.weight);
    const float factor = weight > 0.0f ? 2.0f * global_load(p.dy) / weight : 0.0f;
    for_each_piece(p.elements, is_wide(p.blocks, p.pred, p.target, p.dpred), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        const float scale = factor * weight_of(p.blocks, p.mask, at);
        float d[kW] = {};
        if (scale != 0.0f) {
            float pred[kW], target[kW];
            load<kW>(p.pred + at, pred);
            load<kW>(p.target + at, target);
#pragma unroll
            for (int i = 0; i < kW; ++i) d[i] = scale * (pred[i] - target[i]);
        }
        put<kW>(p.dpred + at, d, p.add != 0);
    });
}
