// gap_loss.cu: the two losses of the gap task, squared error per axis and squared error of the length.
//
//   axis: mean (p - g)^2;                 dp = dy 2 / n (p - g)
//   norm: mean over pairs (|p| - |g|)^2;  dp = dy 2 / pairs (|p| - |g|) p / |p|, 0 where p = 0
//
// Forward: one block. Backward: a thread for each element, or each pair. A few hundred numbers: the time is the
// launch's.
// Source: arXiv 2509.05967, gap task, as its authors' program computes it.
#include "loss.cuh"

struct GapNormForwardParams {
    const float* pred;
    const float* target;
    float* loss;
    long long pairs;
    int axes;
    int reserved;
};

struct GapNormBackwardParams {
    const float* pred;
    const float* target;
    const float* dy;
    float* dpred;
    long long pairs;
    int axes;
    int add;
};

KERNEL(gap_axis_loss_fwd_f32, LossForwardParams, kLossThreads, 1) {
    mean_of(p.loss, p.elements, [&](long long i) {
        const float e = global_load(p.pred + i) - global_load(p.target + i);
        return e * e;
    });
}

KERNEL(gap_axis_loss_bwd_f32, LossBackwardParams, kLossThreads, 1) {
    const long long i = static_cast<long long>(blockIdx.x) * kLossThreads + threadIdx.x;
    if (i >= p.elements) return;
    const float factor = global_load(p.dy) * (2.0f / static_cast<float>(p.elements));
    set_or_add(p.dpred + i, factor * (global_load(p.pred + i) - global_load(p.target + i)), p.add != 0);
}

// In f64, as on the CPU: predicted and true lengths are close to each other once the task is learned, and their
// difference keeps what digits they have.
__device__ __forceinline__ double length_of(const float* v, int axes) {
    double sum = 0.0;
    for (int a = 0; a < axes; ++a) {
        const double x = global_load(v + a);
        sum += x * x;
    }
    return sqrt(sum);
}

KERNEL(gap_norm_loss_fwd_f32, GapNormForwardParams, kLossThreads, 1) {
    mean_of(p.loss, p.pairs, [&](long long i) {
        const double e = length_of(p.pred + i * p.axes, p.axes) - length_of(p.target + i * p.axes, p.axes);
        return static_cast<float>(e * e);
    });
}

KERNEL(gap_norm_loss_bwd_f32, GapNormBackwardParams, kLossThreads, 1) {
    const long long i = static_cast<long long>(blockIdx.x) * kLossThreads + threadIdx.x;
    if (i >= p.pairs) return;
    const float* pred = p.pred + i * p.axes;
    const double length = length_of(pred, p.axes);
    const double error = length - length_of(p.target + i * p.axes, p.axes);
    const float factor = global_load(p.dy) * (2.0f / static_cast<float>(p.pairs));
    const float slope = length > 0.0 ? factor * static_cast<float>(error / length) : 0.0f;
    for (int a = 0; a < p.axes; ++a) {
        set_or_add(p.dpred + i * p.axes + a, slope * global_load(pred + a), p.add != 0);
    }
}
