// cosine_loss.cu: mean cosine between the embeddings of paired sub-views.
//
//   cos = a.b / (na nb), na = max(|a|, 1e-8), nb alike, over channels; loss = factor mean cos over voxels and pairs
//   da = g (b / (na nb) - cos a / (na |a|)), the second term 0 where a = 0; db alike; g = dy factor / (pairs voxels)
//
// x holds four roles of `pairs` images, role-major; a and b are the roles `first` and first + 1.
// A warp computes a voxel pair, its lanes 8 channels at a time (or 1). Forward: grid `pairs`, a block for the mean of
// one pair; then one block adds the pairs. Backward: grid ceil(pairs voxels / 8); writes all four roles, zeros to the
// two that are not in the loss, unless it adds. Sums in f32, in an order that depends on sizes only.
// Traffic: forward reads a and b once; backward reads them twice, the second time from the caches, writes dx once.
// Source: arXiv 2509.05967, similarity task.
#include "cosine.cuh"

constexpr int kCosineThreads = 256;

struct CosineForwardParams {
    const bf16* x;
    float* cosines;    // [pairs]
    long long voxels;  // of an image
    long long role;    // elements of a role
    int channels;
    int first;
};

struct CosineFinishParams {
    const float* cosines;
    float* loss;
    long long pairs;
    float factor;
    int reserved;
};

struct CosineBackwardParams {
    const bf16* x;
    const float* dy;  // one element
    bf16* dx;
    long long voxels;  // of all images of a role
    long long role;
    int channels;
    int first;
    float factor;
    int add;
};

template <int kW> __device__ __forceinline__ float cosine_sum(const CosineForwardParams& p) {
    const long long image = static_cast<long long>(blockIdx.x) * p.voxels * p.channels;
    const bf16* a = p.x + p.first * p.role + image;
    const bf16* b = a + p.role;
    float sum = 0.0f;
    for (long long v = warp_id(); v < p.voxels; v += kCosineThreads / kWarp) {
        const Products s = products<kW>(a + v * p.channels, b + v * p.channels, p.channels);
        sum += s.dot / (fmaxf(s.a, kNormFloor) * fmaxf(s.b, kNormFloor));
    }
    // Every lane has its warp's sum; one of them counts.
    return block_sum<kCosineThreads>(lane_id() == 0 ? sum : 0.0f);
}

KERNEL(cosine_loss_fwd_bf16, CosineForwardParams, kCosineThreads, 2) {
    const float sum = p.channels % 8 == 0 ? cosine_sum<8>(p) : cosine_sum<1>(p);
    if (threadIdx.x == 0) global_store(p.cosines + blockIdx.x, sum / static_cast<float>(p.voxels));
}

KERNEL(cosine_loss_finish_f32, CosineFinishParams, kCosineThreads, 1) {
    float sum = 0.0f;
    for (long long i = threadIdx.x; i < p.pairs; i += kCosineThreads) sum += global_load(p.cosines + i);
    sum = block_sum<kCosineThreads>(sum);
    if (threadIdx.x == 0) global_store(p.loss, p.factor * sum / static_cast<float>(p.pairs));
}

template <int kW> __device__ __forceinline__ void cosine_gradient(const CosineBackwardParams& p, long long voxel) {
    const long long at = voxel * p.channels;
    const bf16* a = p.x + p.first * p.role + at;
    const bf16* b = a + p.role;
    const Products s = products<kW>(a, b, p.channels);
    const float na = fmaxf(s.a, kNormFloor), nb = fmaxf(s.b, kNormFloor);
    const float factor = global_load(p.dy) * p.factor / static_cast<float>(p.voxels);
    const float cosine = s.dot / (na * nb);
    // Where a = 0, a / |a| counts as 0.
    const float length_a = s.a > 0.0f ? s.a : 1.0f, length_b = s.b > 0.0f ? s.b : 1.0f;
    const float factor_a = factor / na, factor_b = factor / nb;
    for (int c = lane_id() * kW; c < p.channels; c += kWarp * kW) {
        float va[kW], vb[kW], da[kW], db[kW];
        load(a + c, va);
        load(b + c, vb);
#pragma unroll
        for (int i = 0; i < kW; ++i) {
            // Quotients, not products with a reciprocal: with one channel they are 1 or -1 and cancel exactly.
            da[i] = factor_a * (vb[i] / nb - cosine * (va[i] / length_a));
            db[i] = factor_b * (va[i] / na - cosine * (vb[i] / length_b));
        }
        put(p.dx + p.first * p.role + at + c, da, p.add != 0);
        put(p.dx + (p.first + 1) * p.role + at + c, db, p.add != 0);
        if (p.add == 0) {
            float zeros[kW] = {};
            for (int role = 0; role < 4; ++role) {
                const bool used = role == p.first || role == p.first + 1;
                if (!used) store(p.dx + role * p.role + at + c, zeros);
            }
        }
    }
}

KERNEL(cosine_loss_bwd_bf16, CosineBackwardParams, kCosineThreads, 2) {
    const long long voxel = static_cast<long long>(blockIdx.x) * (kCosineThreads / kWarp) + warp_id();
    if (voxel >= p.voxels) return;  // whole warps
    if (p.channels % 8 == 0) {
        cosine_gradient<8>(p, voxel);
    } else {
        cosine_gradient<1>(p, voxel);
    }
}
