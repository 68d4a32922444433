// vector_loss.cu: smooth L1 between predicted and true vectors of all ordered pairs.
//
//   mean h(d - g), h(e) = e^2 / 2 where |e| < 1, else |e| - 1/2;   dd = dy / n clamp(d - g, -1, 1)
//
// Forward: one block. Backward: a thread for each element. A few hundred numbers: the time is the launch's.
// Source: arXiv 2509.05967, vector task, as its authors' program computes it.
#include "loss.cuh"

KERNEL(vector_loss_fwd_f32, LossForwardParams, kLossThreads, 1) {
    mean_of(p.loss, p.elements,
            [&](long long i) { return smooth_l1(global_load(p.pred + i) - global_load(p.target + i)); });
}

KERNEL(vector_loss_bwd_f32, LossBackwardParams, kLossThreads, 1) {
    const long long i = static_cast<long long>(blockIdx.x) * kLossThreads + threadIdx.x;
    if (i >= p.elements) return;
    const float factor = global_load(p.dy) / static_cast<float>(p.elements);
    set_or_add(p.dpred + i, factor * smooth_l1_slope(global_load(p.pred + i) - global_load(p.target + i)), p.add != 0);
}
