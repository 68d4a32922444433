// grad_norm_tap.cu: passes a gradient on and measures it.
//
//   dx = (or +=) dy;  norm = sqrt(sum dy^2)
//
// One thread to 8 elements; partial sums of blocks in f64, added in order by a second kernel of one block.
// Traffic: 1 read, 1 write.
#include "lang/vec.cuh"

struct GradNormTapParams {
    const bf16* dy;
    bf16* dx;         // may be null
    double* partial;  // one for each block; null: no norm is wanted
    long long len;
    int add;
    int reserved;
};

struct GradNormTapFinishParams {
    const double* partial;
    float* norm;
    long long count;
};

KERNEL(grad_norm_tap_bwd_bf16, GradNormTapParams, 256, 4) {
    double sum = 0.0;
    for_each_piece(p.len, aligned16(p.dy, p.dx), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        float v[kW];
        load(p.dy + at, v);
        if (p.partial != nullptr) sum += sum_of_squares(v);
        if (p.dx != nullptr) put(p.dx + at, v, p.add != 0);
    });
    if (p.partial == nullptr) return;
    sum = block_sum_f64<256>(sum);
    if (threadIdx.x == 0) global_store(p.partial + blockIdx.x, sum);
}

KERNEL(grad_norm_tap_finish_f64, GradNormTapFinishParams, 256, 1) {
    double sum = 0.0;
    for (long long i = threadIdx.x; i < p.count; i += 256) sum += global_load(p.partial + i);
    sum = block_sum_f64<256>(sum);
    if (threadIdx.x == 0) global_store(p.norm, static_cast<float>(sqrt(sum)));
}
