// linear.cu: linear map of rows.
//
//   y[m,o] = b[o] + sum_k x[m,k] w[o,k]
//   dx[m,k] = sum_o dy[m,o] w[o,k];  dw[o,k] = sum_m dy[m,o] x[m,k];  db[o] = sum_m dy[m,o]
//
// For the heads, a few rows of a few values, what counts is one launch each way; any size is computed, without
// tiles. Forward: a thread for each output, adding in the order of k. Backward: blocks below
// `dx_blocks` have a thread for each dx; the others a warp for each dw, then each db, whose lanes take every 32nd row.
// Grid: forward ceil(M O / 256); backward dx_blocks + ceil((O K + O) / 8), a part that is not wanted left out.
// Traffic: everything read M, O or K times over, from the caches at these sizes; every result written once.
#include "lang/common.cuh"

constexpr int kLinearThreads = 256;

struct LinearForwardParams {
    const float* x;
    const float* w;
    const float* b;  // may be null
    float* y;
    long long outputs;  // M O
    int width, out;     // K, O
};

struct LinearBackwardParams {
    const float* x;
    const float* w;
    const float* dy;
    float* dx;  // these three may be null
    float* dw;
    float* db;
    long long rows;  // M
    int width, out;  // K, O
    int dx_blocks;   // 0 without dx
    int add_dx, add_dw, add_db;
};

KERNEL(linear_fwd_f32, LinearForwardParams, kLinearThreads, 2) {
    const long long i = static_cast<long long>(blockIdx.x) * kLinearThreads + threadIdx.x;
    if (i >= p.outputs) return;
    const long long row = i / p.out;
    const int o = static_cast<int>(i % p.out);
    const float* x = p.x + row * p.width;
    const float* w = p.w + static_cast<long long>(o) * p.width;
    float sum = p.b != nullptr ? global_load(p.b + o) : 0.0f;
    for (int k = 0; k < p.width; ++k) sum = fmaf(global_load(x + k), global_load(w + k), sum);
    global_store(p.y + i, sum);
}

__device__ __forceinline__ void linear_dx(const LinearBackwardParams& p) {
    const long long i = static_cast<long long>(blockIdx.x) * kLinearThreads + threadIdx.x;
    if (i >= p.rows * p.width) return;
    const long long row = i / p.width;
    const int k = static_cast<int>(i % p.width);
    const float* dy = p.dy + row * p.out;
    float sum = 0.0f;
    for (int o = 0; o < p.out; ++o) {
        sum = fmaf(global_load(dy + o), global_load(p.w + static_cast<long long>(o) * p.width + k), sum);
    }
    set_or_add(p.dx + i, sum, p.add_dx != 0);
}

KERNEL(linear_bwd_f32, LinearBackwardParams, kLinearThreads, 2) {
    const int block = static_cast<int>(blockIdx.x);
    if (block < p.dx_blocks) {
        linear_dx(p);
        return;
    }
    const long long warps = kLinearThreads / kWarp;
    const long long item = (block - p.dx_blocks) * warps + warp_id();
    const long long weights = static_cast<long long>(p.out) * p.width;
    const bool is_weight = item < weights;
    // The same for all lanes of a warp.
    if (item >= weights + p.out || (is_weight ? p.dw : p.db) == nullptr) return;
    const int o = static_cast<int>(is_weight ? item / p.width : item - weights);
    const int k = static_cast<int>(is_weight ? item % p.width : 0);
    float sum = 0.0f;
    for (long long m = lane_id(); m < p.rows; m += kWarp) {
        const float dy = global_load(p.dy + m * p.out + o);
        sum = is_weight ? fmaf(dy, global_load(p.x + m * p.width + k), sum) : sum + dy;
    }
    sum = warp_sum(sum);
    if (lane_id() != 0) return;
    if (is_weight) {
        set_or_add(p.dw + item, sum, p.add_dw != 0);
    } else {
        set_or_add(p.db + o, sum, p.add_db != 0);
    }
}
