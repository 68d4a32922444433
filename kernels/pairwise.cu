// pairwise.cu: features of all ordered pairs of views, as difference or as concatenation.
//
//   y[n,i,j] = x[i,n] - x[j,n]      or      y[n,i,j] = [x[i,n]; x[j,n]]
//   dx[v,n] = sum of dy over the pairs with v first, less (or, of the second half, plus) those with v second
//
// Forward: a thread for each output. Backward: a thread for each input, which adds in the order of the pairs (i, j), as
// the CPU does: no atomics, and the same bits. Grid: ceil(elements / 256).
// Traffic: forward reads x 2 V times from the caches, writes y once; backward reads dy twice, writes dx once.
#include "lang/common.cuh"

constexpr int kPairwiseThreads = 256;

struct PairwiseParams {
    const float* in;     // x, or dy
    float* out;          // y, or dx
    long long elements;  // of out
    int views, batch, width;
    int concat;  // else difference
    int add;
    int reserved;
};

KERNEL(pairwise_fwd_f32, PairwiseParams, kPairwiseThreads, 2) {
    const long long at = static_cast<long long>(blockIdx.x) * kPairwiseThreads + threadIdx.x;
    if (at >= p.elements) return;
    const int wide = p.concat ? 2 * p.width : p.width;
    const int k = static_cast<int>(at % wide);
    const long long pair = at / wide;
    const int j = static_cast<int>(pair % p.views);
    const int i = static_cast<int>(pair / p.views % p.views);
    const long long n = pair / p.views / p.views;
    const auto x = [&](int view, int c) {
        return global_load(p.in + (view * static_cast<long long>(p.batch) + n) * p.width + c);
    };
    float y;
    if (p.concat) {
        y = k < p.width ? x(i, k) : x(j, k - p.width);
    } else {
        y = x(i, k) - x(j, k);
    }
    global_store(p.out + at, y);
}

KERNEL(pairwise_bwd_f32, PairwiseParams, kPairwiseThreads, 2) {
    const long long at = static_cast<long long>(blockIdx.x) * kPairwiseThreads + threadIdx.x;
    if (at >= p.elements) return;
    const int wide = p.concat ? 2 * p.width : p.width;
    const int k = static_cast<int>(at % p.width);
    const long long row = at / p.width;
    const long long n = row % p.batch;
    const int v = static_cast<int>(row / p.batch);
    const float* dy = p.in + n * p.views * p.views * wide + k;
    const auto pair = [&](int i, int j) { return dy + (static_cast<long long>(i) * p.views + j) * wide; };
    const auto second = [&](int i) { return p.concat ? global_load(pair(i, v) + p.width) : -global_load(pair(i, v)); };
    float sum = p.add ? global_load(p.out + at) : 0.0f;
    for (int i = 0; i < v; ++i) sum += second(i);
    for (int j = 0; j < p.views; ++j) {
        sum += global_load(pair(v, j));
        if (j == v) sum += second(v);
    }
    for (int i = v + 1; i < p.views; ++i) sum += second(i);
    global_store(p.out + at, sum);
}
