// cross_entropy.cu: cross-entropy of the softmax of logits, each class with a weight.
//
//   loss = sum_m w[t_m] (log sum_c exp(x[m,c]) - x[m,t_m]) / sum_m w[t_m], 0 if the weights add up to 0
//   dx[m,c] = dy w[t_m] (softmax(x[m])[c] - [c = t_m]) / sum_m w[t_m]
//
// Rows whose target is no class, below 0 or `classes` and above, count nowhere. The largest logit of a row is taken
// off before the exponential. A thread computes a row; rows lie one behind the other, so that a warp reads one piece
// of memory. Forward: grid of up to 512 slices, a block of threads for the sums of one; then one block adds the
// slices. Backward: grid ceil(rows / 256). Sums in f32, in an order that depends on sizes only.
// Traffic: forward and backward read x once from memory and again from the caches; backward writes dx once.
// Source: Bishop 2006, "Pattern Recognition and Machine Learning", 4.3.4; the weighted mean is that of PyTorch.
#include "lang/common.cuh"

constexpr int kEntropyThreads = 256;

struct CrossEntropyParams {
    const float* x;
    const float* target;   // [rows]
    const float* weights;  // [classes]
    float* partial;        // [2][slices]: sums of losses, sums of weights
    long long rows;
    int classes;
    int slices;
};

struct CrossEntropyFinishParams {
    const float* partial;
    float* loss;
    float* weight;
    int slices;
    int reserved;
};

struct CrossEntropyBackwardParams {
    const float* x;
    const float* target;
    const float* weights;
    const float* weight;  // one element: the sum over the rows
    const float* dy;      // one element
    float* dx;
    long long rows;
    int classes;
    int add;
};

// The class that a row belongs to; -1 where it is none.
__device__ __forceinline__ int class_of(float target, int classes) {
    return target >= 0.0f && target < static_cast<float>(classes) ? static_cast<int>(target) : -1;
}

struct RowSums {
    float largest, exponentials;
};

__device__ __forceinline__ RowSums row_sums(const float* x, int classes) {
    RowSums sums{global_load(x), 0.0f};
    for (int c = 1; c < classes; ++c) sums.largest = fmaxf(sums.largest, global_load(x + c));
    for (int c = 0; c < classes; ++c) sums.exponentials += expf(global_load(x + c) - sums.largest);
    return sums;
}

KERNEL(cross_entropy_fwd_f32, CrossEntropyParams, kEntropyThreads, 4) {
    float sums[2] = {};
    const long long stride = static_cast<long long>(p.slices) * kEntropyThreads;
    for (long long m = static_cast<long long>(blockIdx.x) * kEntropyThreads + threadIdx.x; m < p.rows; m += stride) {
        const int t = class_of(global_load(p.target + m), p.classes);
        if (t < 0) continue;
        const float* x = p.x + m * p.classes;
        const RowSums row = row_sums(x, p.classes);
        const float weight = global_load(p.weights + t);
        sums[0] = fmaf(weight, logf(row.exponentials) + (row.largest - global_load(x + t)), sums[0]);
        sums[1] += weight;
    }
    block_sum<kEntropyThreads, 2>(sums);
    if (threadIdx.x != 0) return;
    global_store(p.partial + blockIdx.x, sums[0]);
    global_store(p.partial + p.slices + blockIdx.x, sums[1]);
}

KERNEL(cross_entropy_finish_f32, CrossEntropyFinishParams, kEntropyThreads, 1) {
    float sums[2] = {};
    for (int i = static_cast<int>(threadIdx.x); i < p.slices; i += kEntropyThreads) {
        sums[0] += global_load(p.partial + i);
        sums[1] += global_load(p.partial + p.slices + i);
    }
    block_sum<kEntropyThreads, 2>(sums);
    if (threadIdx.x != 0) return;
    global_store(p.loss, sums[1] > 0.0f ? sums[0] / sums[1] : 0.0f);
    global_store(p.weight, sums[1]);
}

KERNEL(cross_entropy_bwd_f32, CrossEntropyBackwardParams, kEntropyThreads, 4) {
    const long long m = static_cast<long long>(blockIdx.x) * kEntropyThreads + threadIdx.x;
    if (m >= p.rows) return;
    const float total = global_load(p.weight);
    const int t = class_of(global_load(p.target + m), p.classes);
    const bool counts = t >= 0 && total > 0.0f;
    const float* x = p.x + m * p.classes;
    float* dx = p.dx + m * p.classes;
    const RowSums row = row_sums(x, p.classes);
    const float factor = counts ? global_load(p.dy) * global_load(p.weights + t) / total : 0.0f;
    for (int c = 0; c < p.classes; ++c) {
        const float share = expf(global_load(x + c) - row.largest) / row.exponentials;
        const float d = counts ? factor * (share - (c == t ? 1.0f : 0.0f)) : 0.0f;
        set_or_add(dx + c, d, p.add != 0);
    }
}
