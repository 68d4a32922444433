// conv3d.cu: 3D convolution, channels last, forward and gradients.
#include "conv3d/gather_wgrad.cuh"
#include "conv3d/halo.cuh"
#include "conv3d/halo_wgrad.cuh"
#include "conv3d/reduce.cuh"
#include "conv3d/stem.cuh"
#include "conv3d/walk.cuh"

#define WALK(name, channels, wn, mirror)                                                            \
    KERNEL(name, Conv3dWalkParams, (Walk<channels, wn, mirror>::kThreads), 2) {                     \
        EXTERN_SHARED(shared);                                                                      \
        Walk<channels, wn, mirror>(p, smem_u32(shared)).run();                                      \
    }

WALK(conv3d_walk_fwd_c16_n16, 16, 1, false)
WALK(conv3d_walk_fwd_c16_n32, 16, 2, false)
WALK(conv3d_walk_fwd_c32_n16, 32, 1, false)
WALK(conv3d_walk_fwd_c32_n32, 32, 2, false)
WALK(conv3d_walk_dgrad_c16_n16, 16, 1, true)
WALK(conv3d_walk_dgrad_c16_n32, 16, 2, true)
WALK(conv3d_walk_dgrad_c32_n16, 32, 1, true)
WALK(conv3d_walk_dgrad_c32_n32, 32, 2, true)

#define HALO(name, wz, wy, wn, nf, mirror, min_blocks)                                              \
    KERNEL(name, Conv3dHaloParams, (Halo<wz, wy, wn, nf, mirror>::kThreads), min_blocks) {          \
        EXTERN_SHARED(shared);                                                                      \
        SHARED_ARRAY(int, place, 4);                                                                \
        Halo<wz, wy, wn, nf, mirror>(p, shared, place).run();                                       \
    }

HALO(conv3d_halo_fwd_n16, 2, 4, 1, 2, false, 2)
HALO(conv3d_halo_fwd_n32, 2, 4, 1, 4, false, 2)
HALO(conv3d_halo_fwd_n64, 1, 4, 2, 4, false, 2)
HALO(conv3d_halo_fwd_n64_z8, 2, 4, 2, 4, false, 1)
HALO(conv3d_halo_dgrad_n16, 2, 4, 1, 2, true, 2)
HALO(conv3d_halo_dgrad_n32, 2, 4, 1, 4, true, 2)
HALO(conv3d_halo_dgrad_n64, 1, 4, 2, 4, true, 2)
HALO(conv3d_halo_dgrad_n64_z8, 2, 4, 2, 4, true, 1)

#define HALO_WGRAD(name, kf, cf)                                                                    \
    KERNEL(name, Conv3dHaloWgradParams, (HaloWgrad<kf, cf>::kThreads), 1) {                         \
        EXTERN_SHARED(shared);                                                                      \
        HaloWgrad<kf, cf>(p, shared).run();                                                         \
    }

HALO_WGRAD(conv3d_halo_wgrad_16x16, 1, 1)
HALO_WGRAD(conv3d_halo_wgrad_16x32, 1, 2)
HALO_WGRAD(conv3d_halo_wgrad_32x16, 2, 1)
HALO_WGRAD(conv3d_halo_wgrad_32x32, 2, 2)

#define GATHER(name, wm, wn, mirror, aligned, min_blocks)                                           \
    KERNEL(name, Conv3dGatherParams, (Gather<wm, wn, mirror, aligned>::kThreads), min_blocks) {     \
        EXTERN_SHARED(shared);                                                                      \
        Gather<wm, wn, mirror, aligned>(p, shared).run();                                           \
    }

GATHER(conv3d_gather_fwd_n32, 4, 1, false, true, 3)
GATHER(conv3d_gather_fwd_n64, 2, 2, false, true, 3)
GATHER(conv3d_gather_fwd_any, 2, 2, false, false, 3)
GATHER(conv3d_gather_dgrad_n32, 4, 1, true, true, 3)
GATHER(conv3d_gather_dgrad_n64, 2, 2, true, true, 3)
GATHER(conv3d_gather_dgrad_any, 2, 2, true, false, 3)

#define GATHER_WGRAD(name, aligned)                                                                 \
    KERNEL(name, Conv3dGatherWgradParams, GatherWgrad<aligned>::kThreads, aligned ? 4 : 2) {        \
        EXTERN_SHARED(shared);                                                                      \
        GatherWgrad<aligned>{p, shared}.run();                                                      \
    }

GATHER_WGRAD(conv3d_gather_wgrad, true)
GATHER_WGRAD(conv3d_gather_wgrad_any, false)

KERNEL(conv3d_sum_splits, Conv3dSumSplitsParams, 256, 4) {
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.len) return;
    const float sum = sum_splits(p.part + i, p.len, p.splits);
    global_store(p.out + i, p.add != 0 ? global_load(p.out + i) + sum : sum);
}

KERNEL(conv3d_sum_rows, Conv3dSumRowsParams, 256, 4) {
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < p.len) sum_rows(p, i);
}

KERNEL(conv3d_bias_grad, Conv3dBiasGradParams, kBiasThreads, 4) {
    SHARED_ARRAY(float, sums, kBiasRows * kBiasChannels);
    bias_grad(p, sums);
}

KERNEL(conv3d_stem_fwd, Conv3dStemParams, StemForward::kThreads, 2) {
    EXTERN_SHARED(shared);
    StemForward{p, shared}.run();
}

KERNEL(conv3d_stem_wgrad, Conv3dStemWgradParams, StemWgrad::kThreads, 2) {
    EXTERN_SHARED(shared);
    StemWgrad{p, shared}.run();
}
