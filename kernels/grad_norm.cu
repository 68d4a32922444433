// grad_norm.cu: norm of all gradients together, and the factor that clips them.
//
//   norm = sqrt(sum g^2);  factor = min(1, max_norm / (norm + 1e-6)), or 1 without a limit
//
// A launch for each gradient block writes a partial sum in f64 for each CUDA block; one block adds all in order.
// A NaN or infinity anywhere makes the norm not finite. Traffic: 1 read.
#include "lang/vec.cuh"

struct GradNormParams {
    const float* grad;
    double* partial;  // one for each block
    long long len;
};

struct GradNormFinishParams {
    const double* partial;
    float* out;  // norm, factor
    long long count;
    double max_norm;  // infinity: no limit
};

KERNEL(grad_norm_sum_f32, GradNormParams, 256, 4) {
    double sum = 0.0;
    for_each_piece(p.len, aligned16(p.grad), [&](auto width, long long at) {
        float v[decltype(width)::value];
        load(p.grad + at, v);
        sum += sum_of_squares(v);
    });
    sum = block_sum_f64<256>(sum);
    if (threadIdx.x == 0) global_store(p.partial + blockIdx.x, sum);
}

KERNEL(grad_norm_finish_f64, GradNormFinishParams, 256, 1) {
    double sum = 0.0;
    for (long long i = threadIdx.x; i < p.count; i += 256) sum += global_load(p.partial + i);
    sum = block_sum_f64<256>(sum);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(sum), limited = p.max_norm / (norm + 1e-6);
    global_store(p.out, static_cast<float>(norm));
    // A norm that is not a number leaves the factor 1, as the comparison is false.
    global_store(p.out + 1, limited < 1.0 ? static_cast<float>(limited) : 1.0f);
}
