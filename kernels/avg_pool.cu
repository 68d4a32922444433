// avg_pool.cu: average pool, stride equal to the window, incomplete windows dropped.
//
//   y[n, z, p, q, c] = mean of the window of x that starts at (z, p, q) * window
//   dx = dy / window where a window covers it, else 0
//
// One thread to 8 channels of a voxel (1, if channels % 8) of the tensor that is written.
// Traffic: forward reads x once, writes y once; backward reads dy once (its repeats come from the caches), writes dx.
#include "lang/vec.cuh"

struct AvgPoolParams {
    const bf16* from;  // x, or dy
    bf16* to;          // y, or dx
    long long instances;
    int input[3];  // extents (z, y, x)
    int output[3];
    int window[3];
    int channels;
    int add;  // backward only
    int reserved;
};

// Voxel index of the tensor with extents `e`, and from it the position (n, z, y, x) and the group of channels.
struct Position {
    long long n;
    int z, y, x, group;

    __device__ __forceinline__ Position(long long index, const int (&e)[3], int groups) {
        Quotient q = divide(index, groups);
        group = static_cast<int>(q.remainder);
        q = divide(q.quotient, e[2]);
        x = static_cast<int>(q.remainder);
        q = divide(q.quotient, e[1]);
        y = static_cast<int>(q.remainder);
        q = divide(q.quotient, e[0]);
        z = static_cast<int>(q.remainder);
        n = q.quotient;
    }
};

__device__ __forceinline__ long long voxel(long long n, int z, int y, int x, const int (&e)[3]) {
    return ((n * e[0] + z) * e[1] + y) * e[2] + x;
}

__device__ __forceinline__ long long volume(const int (&e)[3]) { return static_cast<long long>(e[0]) * e[1] * e[2]; }

template <int kW> __device__ __forceinline__ void forward(const AvgPoolParams& p) {
    const int groups = p.channels / kW;
    const float share = 1.0f / static_cast<float>(p.window[0] * p.window[1] * p.window[2]);
    const long long len = p.instances * volume(p.output) * groups;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < len; i += step) {
        const Position at(i, p.output, groups);
        float sum[kW] = {};
        for (int z = 0; z < p.window[0]; ++z) {
            for (int y = 0; y < p.window[1]; ++y) {
                const bf16* x =
                    p.from + at.group * kW +
                    voxel(at.n, at.z * p.window[0] + z, at.y * p.window[1] + y, at.x * p.window[2], p.input) *
                        p.channels;
#pragma unroll 2
                for (int k = 0; k < p.window[2]; ++k, x += p.channels) {
                    float v[kW];
                    load(x, v);
#pragma unroll
                    for (int c = 0; c < kW; ++c) sum[c] = fmaf(v[c], share, sum[c]);
                }
            }
        }
        store(p.to + i * kW, sum);
    }
}

template <int kW> __device__ __forceinline__ void backward(const AvgPoolParams& p) {
    const int groups = p.channels / kW;
    const float share = 1.0f / static_cast<float>(p.window[0] * p.window[1] * p.window[2]);
    const long long len = p.instances * volume(p.input) * groups;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < len; i += step) {
        const Position at(i, p.input, groups);
        const int z = at.z / p.window[0], y = at.y / p.window[1], x = at.x / p.window[2];
        float v[kW] = {};
        if (z < p.output[0] && y < p.output[1] && x < p.output[2]) {
            load(p.from + voxel(at.n, z, y, x, p.output) * p.channels + at.group * kW, v);
#pragma unroll
            for (int c = 0; c < kW; ++c) v[c] *= share;
        }
        put(p.to + i * kW, v, p.add != 0);
    }
}

KERNEL(avg_pool_fwd_bf16, AvgPoolParams, 256, 4) {
    if (p.channels % 8 == 0 && aligned16(p.from, p.to)) {
        forward<8>(p);
    } else {
        forward<1>(p);
    }
}

KERNEL(avg_pool_bwd_bf16, AvgPoolParams, 256, 4) {
    if (p.channels % 8 == 0 && aligned16(p.from, p.to)) {
        backward<8>(p);
    } else {
        backward<1>(p);
    }
}
