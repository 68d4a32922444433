// loss.cuh: what the losses share: smooth L1, the parameters of a loss of one element, the mean over a block.
#pragma once

#include "lang/common.cuh"

constexpr int kLossThreads = 256;

// Smooth L1 with beta 1, and its derivative.
__device__ __forceinline__ float smooth_l1(float e) {
    const float size = fabsf(e);
    return size < 1.0f ? 0.5f * e * e : size - 0.5f;
}
__device__ __forceinline__ float smooth_l1_slope(float e) { return fminf(fmaxf(e, -1.0f), 1.0f); }

// A prediction and a target of `elements` numbers, and the loss.
struct LossForwardParams {
    const float* pred;
    const float* target;
    float* loss;
    long long elements;
};

struct LossBackwardParams {
    const float* pred;
    const float* target;
    const float* dy;  // one element
    float* dpred;
    long long elements;
    int add;
    int reserved;
};

// One block: the mean of term(i) over [0, count) as `loss`. A thread adds every 256th term, then the block its threads'
// sums, in an order that depends on nothing but `count`.
template <class Term> __device__ __forceinline__ void mean_of(float* loss, long long count, Term term) {
    float sum = 0.0f;
    for (long long i = threadIdx.x; i < count; i += kLossThreads) sum += term(i);
    sum = block_sum<kLossThreads>(sum);
    if (threadIdx.x == 0) global_store(loss, sum / static_cast<float>(count));
}
