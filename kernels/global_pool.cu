// global_pool.cu: mean over all voxels of each channel, [N, D, H, W, C] bf16 to [N, C] f32.
//
//   y[n, c] = sum_v x[n, v, c] / voxels;  dx[n, v, c] = dy[n, c] / voxels
//
// Forward, grid (slices, tiles, instances): a block sums a tile of channels over a slice of the voxels; threads stand
// in rows as in norm.cu. More than one slice: a second kernel adds the partial sums in order.
// Traffic: forward 1 read; backward 1 write.
#include "lang/vec.cuh"

constexpr int kThreads = 256;
constexpr int kUnroll = 4;

struct GlobalPoolParams {
    const bf16* x;
    float* out;  // y, or partial sums [instances, slices, channels] if there are several slices
    long long voxels;
    int channels;
    int width;  // channels to an access, 8 or 1
    int tile;   // accesses of a voxel that a block makes, at most kThreads
    int slices;
};

struct GlobalPoolFinishParams {
    const float* partial;
    float* y;
    long long voxels;
    int channels, slices, instances, reserved;
};

struct GlobalPoolGradParams {
    const float* dy;
    bf16* dx;
    long long voxels;
    int channels, instances, add, reserved;
};

// One block: kW channels to a thread, every rows-th voxel. Every kRun loads the sum moves to a second one, so that the
// error grows with the root of the number of voxels at most.
template <int kW> __device__ __forceinline__ void forward(const GlobalPoolParams& p, float* scratch) {
    constexpr int kRun = 64;
    const int rows = kThreads / p.tile;
    const int row = static_cast<int>(threadIdx.x) / p.tile, group = static_cast<int>(threadIdx.x) % p.tile;
    const int channel = (static_cast<int>(blockIdx.y) * p.tile + group) * kW;
    const long long begin = p.voxels * blockIdx.x / p.slices + row, end = p.voxels * (blockIdx.x + 1) / p.slices;
    const bool active = row < rows && channel < p.channels;
    const bf16* x = p.x + blockIdx.z * p.voxels * p.channels + channel;
    float total[kW] = {};
    for (long long run = begin; active && run < end; run += static_cast<long long>(kRun) * rows) {
        const long long last =
            run + static_cast<long long>(kRun) * rows < end ? run + static_cast<long long>(kRun) * rows : end;
        float sum[kW] = {};
#pragma unroll 1
        for (long long v = run; v < last; v += kUnroll * rows) {
            Raw<kW> raw[kUnroll];
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) {
                raw[u] = v + u * rows < last ? load_raw<kW>(x + (v + u * rows) * p.channels) : Raw<kW>{};
            }
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) {
                float value[kW];
                unpack(raw[u], value);
                Add{}(sum, value);
            }
        }
        Add{}(total, sum);
    }
    reduce_rows<kThreads>(total, row, rows, p.tile, scratch, Add{});
    if (row != 0 || channel >= p.channels) return;
    float* out = p.out + (static_cast<long long>(blockIdx.z) * p.slices + blockIdx.x) * p.channels + channel;
    const float divisor = p.slices == 1 ? static_cast<float>(p.voxels) : 1.0f;
#pragma unroll
    for (int i = 0; i < kW; ++i) global_store(out + i, total[i] / divisor);
}

KERNEL(global_pool_fwd_bf16, GlobalPoolParams, 256, 4) {
    SHARED_ARRAY(float, scratch, 8 * kThreads);
    if (p.width == 8) {
        forward<8>(p, scratch);
    } else {
        forward<1>(p, scratch);
    }
}

KERNEL(global_pool_finish_f32, GlobalPoolFinishParams, 256, 1) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= p.instances * p.channels) return;
    const float* from = p.partial + static_cast<long long>(i / p.channels) * p.slices * p.channels + i % p.channels;
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < p.slices; ++s) sum += global_load(from + static_cast<long long>(s) * p.channels);
    global_store(p.y + i, sum / static_cast<float>(p.voxels));
}

template <int kW> __device__ __forceinline__ void backward(const GlobalPoolGradParams& p) {
    const int groups = p.channels / kW;
    const float share = 1.0f / static_cast<float>(p.voxels);
    const long long len = p.instances * p.voxels * groups, step = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < len; i += step) {
        const Quotient at = divide(i, groups);
        const long long n = divide(at.quotient, p.voxels).quotient;
        float v[kW];
        load(p.dy + n * p.channels + at.remainder * kW, v);
#pragma unroll
        for (int c = 0; c < kW; ++c) v[c] *= share;
        put(p.dx + i * kW, v, p.add != 0);
    }
}

KERNEL(global_pool_bwd_bf16, GlobalPoolGradParams, 256, 4) {
    if (p.channels % 8 == 0 && aligned16(p.dy, p.dx)) {
        backward<8>(p);
    } else {
        backward<1>(p);
    }
}
