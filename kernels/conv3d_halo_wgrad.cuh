// conv3d_halo_wgrad.cuh: filter gradient of the 3x3x3 convolution, stride 1, padding 1, channels multiples of 16:
//   dw[k, t, c] = sum over voxels v of dy[v, k] x[v + t - 1, c]
//
// A block owns a tile of 16 kKF output by 16 kCF input channels with all 27 taps and keeps the sums in registers
// while it walks over boxes of voxels: 4 planes of x, 8 x 8 voxels and their (y, x) halo, and the 6 planes of dy that
// meet them. Box i + 1 is copied while box i is multiplied. Warps: 3 y taps x kKF x kCF x 4 / (kKF kCF) groups of
// voxels, twelve in all, 9 taps of 16 x 16 sums each. The sums go to `part` [splits][K][27][C] and are added in order
// by conv3d_sum_splits, so the result does not depend on timing.
#pragma once

#include "conv3d_tile.cuh"

struct Conv3dHaloWgradParams {
    const bf16* x;   // [N, D, H, W, C]
    const bf16* dy;  // [N, D, H, W, K]
    float* part;     // [gridDim.x * kVoxelGroups, K, 27, C]
    int batch, depth, height, width, in_channels, out_channels;
    int boxes, boxes_per_block;
};

template <int kKF, int kCF> struct HaloWgrad {
    static constexpr int kThreads = 12 * kWarp, kVoxelGroups = 4 / (kKF * kCF);
    static constexpr int kPlanes = 4, kTile = 8, kBox = kTile + 2;  // x planes; extent in y and x without and with halo
    static constexpr int kXRow = kCF * 32, kDyRow = kKF * 32;       // bytes of one voxel
    static constexpr int kXPlane = kBox * kBox * kXRow, kDyPlane = kTile * kTile * kDyRow;
    static constexpr int kDyBase = kPlanes * kXPlane, kBuffer = kDyBase + (kPlanes + 2) * kDyPlane;
    static constexpr int kShared = 2 * kBuffer;
    static_assert(kShared <= 99 * 1024, "what every card has");

    const Conv3dHaloWgradParams& p;
    const uint32_t shared;

    struct Corner {
        int item, z, y, x;
    };

    __device__ __forceinline__ Corner corner(int box) const {
        const int boxes_x = ceil_div(p.width, kTile), boxes_y = ceil_div(p.height, kTile);
        const int boxes_z = ceil_div(p.depth, kPlanes);
        Corner at;
        at.x = box % boxes_x * kTile;
        box /= boxes_x;
        at.y = box % boxes_y * kTile;
        box /= boxes_y;
        at.z = box % boxes_z * kPlanes;
        at.item = box / boxes_z;
        return at;
    }

    // One 16-byte piece of a voxel, zeros outside the volume or the channels.
    __device__ __forceinline__ void copy(uint32_t to, const bf16* from, const Corner& at, int z, int y, int x,
                                         int channels, int channel) const {
        const bool inside = static_cast<unsigned>(z) < static_cast<unsigned>(p.depth) &&
                            static_cast<unsigned>(y) < static_cast<unsigned>(p.height) &&
                            static_cast<unsigned>(x) < static_cast<unsigned>(p.width) && channel < channels;
        const int voxel = ((at.item * p.depth + z) * p.height + y) * p.width + x;
        cp_async16(to, from + (inside ? static_cast<size_t>(voxel) * channels + channel : 0), inside);
    }

    __device__ __forceinline__ void load(int box, uint32_t buffer, int k0, int c0) const {
        const Corner at = corner(box);
        for (int i = static_cast<int>(threadIdx.x); i < kPlanes * kBox * kBox * kCF * 2; i += kThreads) {
            const int chunk = i % (kCF * 2), voxel = i / (kCF * 2);
            const int x = voxel % kBox, y = voxel / kBox % kBox, z = voxel / (kBox * kBox);
            copy(buffer + voxel * kXRow + ((chunk ^ swizzle<kCF * 2>(x)) << 4), p.x, at, at.z + z, at.y + y - 1,
                 at.x + x - 1, p.in_channels, c0 + chunk * 8);
        }
        for (int i = static_cast<int>(threadIdx.x); i < (kPlanes + 2) * kTile * kTile * kKF * 2; i += kThreads) {
            const int chunk = i % (kKF * 2), voxel = i / (kKF * 2);
            const int x = voxel % kTile, y = voxel / kTile % kTile, z = voxel / (kTile * kTile);
            copy(buffer + kDyBase + voxel * kDyRow + ((chunk ^ swizzle<kKF * 2>(x)) << 4), p.dy, at, at.z + z - 1,
                 at.y + y, at.x + x, p.out_channels, k0 + chunk * 8);
        }
    }

    // acc[tx][2 - tz]: a plane of x meets the planes of dy one above, level and one below. `group`: 2 y by 8 x voxels.
    __device__ __forceinline__ void multiply(float (&acc)[3][3][2][4], uint32_t dy_lane, const uint32_t (&x_lane)[3],
                                             int group) const {
        uint32_t a[kPlanes + 2][4];
#pragma unroll
        for (int plane = 0; plane < kPlanes + 2; ++plane) {
            ldmatrix_x4_trans(a[plane], dy_lane + group * (2 * kTile * kDyRow) + plane * kDyPlane);
        }
#pragma unroll
        for (int plane = 0; plane < kPlanes; ++plane) {
#pragma unroll
            for (int tx = 0; tx < 3; ++tx) {
                uint32_t b[2][2];
                load_b_pair(b[0], b[1], x_lane[tx] + group * (2 * kBox * kXRow) + plane * kXPlane, true);
                mma_bf16<3, 2>(acc[tx], fragments<3>(a, plane), b);
            }
        }
    }

    __device__ __forceinline__ void run() const {
        const LaneTile lane = lane_tile();
        const int warp = warp_id(), ty = warp % 3, kh = warp / 3 % kKF, ch = warp / (3 * kKF) % kCF;
        const int voxels = warp / (3 * kKF * kCF);  // which groups of voxels
        const int c_tiles = ceil_div(p.in_channels, 16 * kCF);
        const int k0 = static_cast<int>(blockIdx.y) / c_tiles * 16 * kKF;
        const int c0 = static_cast<int>(blockIdx.y) % c_tiles * 16 * kCF;
        uint32_t x_lane[3];
#pragma unroll
        for (int tx = 0; tx < 3; ++tx) {
            const int x = lane.row + tx, row = (lane.low + ty) * kBox + x;
            x_lane[tx] = row * kXRow + (((ch * 2 + lane.high) ^ swizzle<kCF * 2>(x)) << 4);
        }
        const uint32_t dy_lane = kDyBase + (lane.high * kTile + lane.row) * kDyRow +
                                 (((kh * 2 + lane.low) ^ swizzle<kKF * 2>(lane.row)) << 4);
        float acc[3][3][2][4] = {};
        const int first = static_cast<int>(blockIdx.x) * p.boxes_per_block;
        const int last = first + p.boxes_per_block < p.boxes ? first + p.boxes_per_block : p.boxes;
        uint32_t buffer = shared, other = shared + kBuffer;
        if (first < last) load(first, buffer, k0, c0);
        cp_async_commit();
        for (int box = first; box < last; ++box) {
            cp_async_wait<0>();
            __syncthreads();
            if (box + 1 < last) load(box + 1, other, k0, c0);
            cp_async_commit();
            const uint32_t x_now[3] = {buffer + x_lane[0], buffer + x_lane[1], buffer + x_lane[2]};
#pragma unroll 1
            for (int group = voxels; group < 4; group += kVoxelGroups) multiply(acc, buffer + dy_lane, x_now, group);
            const uint32_t swap = buffer;
            buffer = other;
            other = swap;
        }
        store(acc, ty, k0 + kh * 16, c0 + ch * 16, voxels);
    }

    __device__ __forceinline__ void store(const float (&acc)[3][3][2][4], int ty, int k0, int c0, int voxels) const {
        const int group = lane_id() >> 2, quad = lane_id() & 3;
        const int split = static_cast<int>(blockIdx.x) * kVoxelGroups + voxels;
        if (k0 >= p.out_channels || c0 >= p.in_channels) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int k = k0 + half * 8 + group;
            float* row = p.part + (static_cast<size_t>(split) * p.out_channels + k) * 27 * p.in_channels + c0 + quad * 2;
#pragma unroll
            for (int tz = 0; tz < 3; ++tz) {
#pragma unroll
                for (int tx = 0; tx < 3; ++tx) {
                    float* tap = row + (tz * 9 + ty * 3 + tx) * p.in_channels;
#pragma unroll
                    for (int n = 0; n < 2; ++n) {
                        const float(&v)[4] = acc[tx][2 - tz][n];
                        global_store(reinterpret_cast<float2*>(tap + n * 8), make_float2(v[half * 2], v[half * 2 + 1]));
                    }
                }
            }
        }
    }
};
