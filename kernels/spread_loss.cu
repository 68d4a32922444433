// spread_loss.cu: mean squared cosine between the embeddings of different boxes of a sample.
//
//   K[i][j] = x_i.x_j / (n_i n_j), n = max(|x|, 1e-8), over channels, for the 4 P boxes of a sample, voxel by voxel
//   loss = mean K[i][j]^2 over samples, voxels and ordered pairs i != j that are not the adjacent boxes of a pair
//   dx_i = g sum_j K[i][j] (x_j / n_j - K[i][j] x_i / |x_i|) / n_i over the same j, the second term 0 where x_i = 0;
//   g = 4 dy / (samples voxels pairs of boxes), since a pair counts in both orders
//
// x holds the four roles of `samples` x `pairs` images, role-major; a group is one sample at one voxel, its rows the
// boxes (role, pair). Grid of both kernels: groups x rows, a block for a row. Forward: a warp for every eighth other
// row; then one block adds the squares. Backward: a thread for each 8 channels (or 1), over all rows.
// Sums in f32, in an order that depends on sizes only.
// Traffic: a block reads its group's rows, 4 P channels bf16, most of it from the caches; K is read once more by each.
// Source: HaoChen et al. 2021, arXiv 2106.04156 (spectral contrastive loss: the squared term).
#include "cosine.cuh"

constexpr int kSpreadThreads = 256;
constexpr int kMostRows = 84;  // of seven views

struct SpreadShape {
    long long voxels;  // of an image
    int samples;
    int pairs;
    int channels;
    int reserved;
};

struct SpreadForwardParams {
    const bf16* x;
    float* cosines;  // [groups, rows, rows]
    float* lengths;  // [groups, rows]
    SpreadShape shape;
};

struct SpreadFinishParams {
    const float* cosines;
    float* loss;
    long long groups;
    int pairs;
    int reserved;
};

struct SpreadBackwardParams {
    const bf16* x;
    const float* cosines;
    const float* lengths;
    const float* dy;  // one element
    bf16* dx;
    SpreadShape shape;
    int add;
    int reserved;
};

// Whether rows i and j are different boxes, and not the adjacent ones of a pair.
__device__ __forceinline__ bool is_spread(int i, int j, int pairs) {
    const bool adjacent = i < 2 * pairs && j < 2 * pairs && (i - j == pairs || j - i == pairs);
    return i != j && !adjacent;
}

__device__ __forceinline__ float spread_pairs(long long groups, int pairs) {
    const long long rows = 4ll * pairs;
    return static_cast<float>(groups * (rows * (rows - 1) - 2ll * pairs));
}

// Where row `row` of group `group` begins in x.
__device__ __forceinline__ long long row_start(const SpreadShape& s, long long group, int row) {
    const Quotient at = divide(group, s.voxels);
    const int role = row / s.pairs, pair = row % s.pairs;
    const long long image = (static_cast<long long>(role) * s.samples + at.quotient) * s.pairs + pair;
    return (image * s.voxels + at.remainder) * s.channels;
}

template <int kW> __device__ __forceinline__ void row_cosines(const SpreadForwardParams& p) {
    const int rows = 4 * p.shape.pairs;
    const Quotient at = divide(static_cast<long long>(blockIdx.x), static_cast<long long>(rows));
    const int i = static_cast<int>(at.remainder);
    const bf16* own = p.x + row_start(p.shape, at.quotient, i);
    float* cosines = p.cosines + static_cast<long long>(blockIdx.x) * rows;
    for (int j = warp_id(); j < rows; j += kSpreadThreads / kWarp) {
        const Products s = products<kW>(own, p.x + row_start(p.shape, at.quotient, j), p.shape.channels);
        if (lane_id() == 0) {
            global_store(cosines + j, s.dot / (fmaxf(s.a, kNormFloor) * fmaxf(s.b, kNormFloor)));
            if (i == j) global_store(p.lengths + blockIdx.x, s.a);
        }
    }
}

KERNEL(spread_loss_fwd_bf16, SpreadForwardParams, kSpreadThreads, 2) {
    if (p.shape.channels % 8 == 0) {
        row_cosines<8>(p);
    } else {
        row_cosines<1>(p);
    }
}

KERNEL(spread_loss_finish_f32, SpreadFinishParams, kSpreadThreads, 1) {
    const int rows = 4 * p.pairs, square = rows * rows;
    float sum = 0.0f;
    for (long long group = 0; group < p.groups; ++group) {
        for (int at = threadIdx.x; at < square; at += kSpreadThreads) {
            const float cosine = global_load(p.cosines + group * square + at);
            if (is_spread(at / rows, at % rows, p.pairs)) sum = fmaf(cosine, cosine, sum);
        }
    }
    sum = block_sum<kSpreadThreads>(sum);
    if (threadIdx.x == 0) global_store(p.loss, sum / spread_pairs(p.groups, p.pairs));
}

template <int kW>
__device__ __forceinline__ void spread_gradient(const SpreadBackwardParams& p, long long group, int i,
                                                const float* weights, float own) {
    const int rows = 4 * p.shape.pairs, channels = p.shape.channels;
    for (int c = static_cast<int>(threadIdx.x) * kW; c < channels; c += kSpreadThreads * kW) {
        float sum[kW], v[kW];
        load(p.x + row_start(p.shape, group, i) + c, v);
#pragma unroll
        for (int k = 0; k < kW; ++k) sum[k] = -own * v[k];
        for (int j = 0; j < rows; ++j) {
            load(p.x + row_start(p.shape, group, j) + c, v);
#pragma unroll
            for (int k = 0; k < kW; ++k) sum[k] = fmaf(weights[j], v[k], sum[k]);
        }
        put(p.dx + row_start(p.shape, group, i) + c, sum, p.add != 0);
    }
}

KERNEL(spread_loss_bwd_bf16, SpreadBackwardParams, kSpreadThreads, 2) {
    SHARED_ARRAY(float, weights, kMostRows);
    const int rows = 4 * p.shape.pairs;
    const Quotient at = divide(static_cast<long long>(blockIdx.x), static_cast<long long>(rows));
    const int i = static_cast<int>(at.remainder);
    const float* lengths = p.lengths + at.quotient * rows;
    const float length = global_load(lengths + i);
    const float groups = static_cast<float>(p.shape.samples) * static_cast<float>(p.shape.voxels);
    const float factor =
        4.0f * global_load(p.dy) / (groups * spread_pairs(1, p.shape.pairs) * fmaxf(length, kNormFloor));
    // Weights of the other rows, and what is taken off along the own one.
    float squares = 0.0f;
    const int j = static_cast<int>(threadIdx.x);
    if (j < rows) {
        const float cosine = is_spread(i, j, p.shape.pairs)
                                 ? global_load(p.cosines + static_cast<long long>(blockIdx.x) * rows + j)
                                 : 0.0f;
        weights[j] = factor * cosine / fmaxf(global_load(lengths + j), kNormFloor);
        squares = cosine * cosine;
    }
    squares = block_sum<kSpreadThreads>(squares);  // a barrier too: all weights are there
    const float own = length > 0.0f ? factor * squares / length : 0.0f;
    if (p.shape.channels % 8 == 0) {
        spread_gradient<8>(p, at.quotient, i, weights, own);
    } else {
        spread_gradient<1>(p, at.quotient, i, weights, own);
    }
}
