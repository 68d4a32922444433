// conv3d.cu: 3D convolution, channels last, forward and gradients.
#include "conv3d/igemm_wgrad.cuh"
#include "conv3d/spatial.cuh"
#include "conv3d/zstream_wgrad.cuh"
#include "conv3d/reduce.cuh"
#include "conv3d/direct.cuh"
#include "conv3d/zstream.cuh"

#define ZSTREAM(name, channels, wn, mirror)                                           \
    KERNEL(name, Conv3dZStreamParams, (ZStream<channels, wn, mirror>::kThreads), 2) { \
        DYNAMIC_SHARED(shared, (ZStream<channels, wn, mirror>::kShared));             \
        ZStream<channels, wn, mirror>(p, smem_u32(shared)).run();                     \
    }

ZSTREAM(conv3d_zstream_fprop_c16_n16, 16, 1, false)
ZSTREAM(conv3d_zstream_fprop_c16_n32, 16, 2, false)
ZSTREAM(conv3d_zstream_fprop_c32_n16, 32, 1, false)
ZSTREAM(conv3d_zstream_fprop_c32_n32, 32, 2, false)
ZSTREAM(conv3d_zstream_dgrad_c16_n16, 16, 1, true)
ZSTREAM(conv3d_zstream_dgrad_c16_n32, 16, 2, true)
ZSTREAM(conv3d_zstream_dgrad_c32_n16, 32, 1, true)
ZSTREAM(conv3d_zstream_dgrad_c32_n32, 32, 2, true)

#define SPATIAL(name, wz, wy, wn, nf, mirror, min_blocks)                                        \
    KERNEL(name, Conv3dSpatialParams, (Spatial<wz, wy, wn, nf, mirror>::kThreads), min_blocks) { \
        DYNAMIC_SHARED(shared, (Spatial<wz, wy, wn, nf, mirror>::kShared));                      \
        SHARED_ARRAY(int, place, 4);                                                             \
        Spatial<wz, wy, wn, nf, mirror>(p, shared, place).run();                                 \
    }

SPATIAL(conv3d_spatial_fprop_n16, 2, 4, 1, 2, false, 2)
SPATIAL(conv3d_spatial_fprop_n32, 2, 4, 1, 4, false, 2)
SPATIAL(conv3d_spatial_fprop_n64, 1, 4, 2, 4, false, 2)
SPATIAL(conv3d_spatial_fprop_n64_z8, 2, 4, 2, 4, false, 1)
SPATIAL(conv3d_spatial_dgrad_n16, 2, 4, 1, 2, true, 2)
SPATIAL(conv3d_spatial_dgrad_n32, 2, 4, 1, 4, true, 2)
SPATIAL(conv3d_spatial_dgrad_n64, 1, 4, 2, 4, true, 2)
SPATIAL(conv3d_spatial_dgrad_n64_z8, 2, 4, 2, 4, true, 1)

#define ZSTREAM_WGRAD(name, kf, cf)                                               \
    KERNEL(name, Conv3dZStreamWgradParams, (ZStreamWgrad<kf, cf>::kThreads), 1) { \
        DYNAMIC_SHARED(shared, (ZStreamWgrad<kf, cf>::kShared));                  \
        ZStreamWgrad<kf, cf>(p, shared).run();                                    \
    }

ZSTREAM_WGRAD(conv3d_zstream_wgrad_16x16, 1, 1)
ZSTREAM_WGRAD(conv3d_zstream_wgrad_16x32, 1, 2)
ZSTREAM_WGRAD(conv3d_zstream_wgrad_32x16, 2, 1)
ZSTREAM_WGRAD(conv3d_zstream_wgrad_32x32, 2, 2)

#define IGEMM(name, wm, wn, mirror, aligned, min_blocks)                                      \
    KERNEL(name, Conv3dIgemmParams, (Igemm<wm, wn, mirror, aligned>::kThreads), min_blocks) { \
        DYNAMIC_SHARED(shared, (Igemm<wm, wn, mirror, aligned>::kShared));                    \
        Igemm<wm, wn, mirror, aligned>(p, shared).run();                                      \
    }

IGEMM(conv3d_igemm_fprop_n32, 4, 1, false, true, 3)
IGEMM(conv3d_igemm_fprop_n64, 2, 2, false, true, 3)
IGEMM(conv3d_igemm_fprop_any, 2, 2, false, false, 3)
IGEMM(conv3d_igemm_dgrad_n32, 4, 1, true, true, 3)
IGEMM(conv3d_igemm_dgrad_n64, 2, 2, true, true, 3)
IGEMM(conv3d_igemm_dgrad_any, 2, 2, true, false, 3)

#define IGEMM_WGRAD(name, aligned)                                                         \
    KERNEL(name, Conv3dIgemmWgradParams, IgemmWgrad<aligned>::kThreads, aligned ? 4 : 2) { \
        DYNAMIC_SHARED(shared, IgemmWgrad<aligned>::kShared);                              \
        IgemmWgrad<aligned>{p, shared}.run();                                              \
    }

IGEMM_WGRAD(conv3d_igemm_wgrad, true)
IGEMM_WGRAD(conv3d_igemm_wgrad_any, false)

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

KERNEL(conv3d_bias_bwd, Conv3dBiasGradParams, kBiasThreads, 4) {
    SHARED_ARRAY(float, sums, kBiasRows* kBiasChannels);
    bias_grad(p, sums);
}

KERNEL(conv3d_direct_fprop, Conv3dDirectParams, DirectForward::kThreads, 2) {
    DYNAMIC_SHARED(shared, DirectForward::kShared);
    DirectForward{p, shared}.run();
}

KERNEL(conv3d_direct_wgrad, Conv3dDirectWgradParams, DirectWgrad::kThreads, 2) {
    DYNAMIC_SHARED(shared, DirectWgrad::kShared);
    DirectWgrad{p, shared}.run();
}
