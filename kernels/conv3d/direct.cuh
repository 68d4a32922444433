// conv3d/direct.cuh: 3x3x3 convolution of one input channel, stride 1, padding 1, output channels a multiple of 8;
// forward and filter gradient. The reduction index of the forward is the 27 taps, padded to 32: fragments are put
// together from single elements of an input box in shared memory. Both are bound by reading or writing the output
// side, 2 K bytes a voxel, once.
#pragma once

#include "epilogue.cuh"

struct Conv3dDirectParams {
    const bf16* x;      // [N, D, H, W, 1]
    const bf16* w;      // [K, 27]
    const float* bias;  // [K] or null
    bf16* y;            // [N, D, H, W, K]
    int batch, depth, height, width, out_channels, unused;
    Conv3dNorm norm;
};

struct Conv3dDirectWgradParams {
    const bf16* x;   // [N, D, H, W, 1]
    const bf16* dy;  // [N, D, H, W, K]
    float* part;     // [gridDim.x, K, 27]
    int batch, depth, height, width, out_channels;
    int boxes, boxes_per_block, unused;
};

constexpr int kDirectRow = 10, kDirectPlane = 100;  // elements of a box of 8 x 8 voxels and its halo

// Offset in the box of a tap; the padded taps 27 to 31 read something and meet a zero, or are not stored.
__device__ __forceinline__ int direct_tap(int tap) {
    return tap < 27 ? tap / 9 * kDirectPlane + tap / 3 % 3 * kDirectRow + tap % 3 : 0;
}

struct DirectCorner {
    int item, z, y, x;
};

template <class Params> __device__ __forceinline__ DirectCorner direct_corner(const Params& p, int box, int planes) {
    const int boxes_x = ceil_div(p.width, 8), boxes_y = ceil_div(p.height, 8), boxes_z = ceil_div(p.depth, planes);
    DirectCorner at;
    at.x = box % boxes_x * 8;
    box /= boxes_x;
    at.y = box % boxes_y * 8;
    box /= boxes_y;
    at.z = box % boxes_z * planes;
    at.item = box / boxes_z;
    return at;
}

// The box of `planes` planes and its halo, zeros outside the volume.
template <class Params>
__device__ __forceinline__ void load_direct_box(const Params& p, uint16_t* box, const DirectCorner& at, int planes) {
    for (int i = static_cast<int>(threadIdx.x); i < (planes + 2) * kDirectPlane; i += static_cast<int>(blockDim.x)) {
        const int z = at.z + i / kDirectPlane - 1, y = at.y + i / kDirectRow % kDirectRow - 1,
                  x = at.x + i % kDirectRow - 1;
        const bool inside = static_cast<unsigned>(z) < static_cast<unsigned>(p.depth) &&
                            static_cast<unsigned>(y) < static_cast<unsigned>(p.height) &&
                            static_cast<unsigned>(x) < static_cast<unsigned>(p.width);
        const int voxel = ((at.item * p.depth + z) * p.height + y) * p.width + x;
        box[i] = inside ? global_load(reinterpret_cast<const uint16_t*>(p.x) + voxel) : uint16_t{0};
    }
}

__device__ __forceinline__ uint32_t pair(const uint16_t* box, int lo, int hi) {
    return static_cast<uint32_t>(box[lo]) | static_cast<uint32_t>(box[hi]) << 16;
}

// A block makes 16 x 8 x 8 voxels by 32 channels; a warp 8 planes of 2 y x 8 x.
struct DirectForward {
    static constexpr int kThreads = 256, kPlanes = 16, kStage = 8 * 2048;
    static constexpr int kShared = kStage + (kPlanes + 2) * kDirectPlane * 2;

    const Conv3dDirectParams& p;
    unsigned char* const shared;

    __device__ __forceinline__ void load_filter(uint32_t (&b)[2][4][2], int n0) const {
        const int group = lane_id() >> 2, quad = lane_id() & 3;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const int n = n0 + i / 2 % 4 * 8 + group, tap = i / 8 * 16 + i % 2 * 8 + quad * 2;
            const uint16_t* from = reinterpret_cast<const uint16_t*>(p.w) + n * 27 + tap;
            const uint32_t lo = n < p.out_channels && tap < 27 ? global_load(from) : 0;
            const uint32_t hi = n < p.out_channels && tap + 1 < 27 ? global_load(from + 1) : 0;
            b[i / 8][i / 2 % 4][i % 2] = lo | hi << 16;
        }
    }

    __device__ __forceinline__ void run() const {
        const int warp = warp_id(), wy = warp % 4, wz = warp / 4, group = lane_id() >> 2, quad = lane_id() & 3;
        const int n0 = static_cast<int>(blockIdx.y) * 32;
        const DirectCorner at = direct_corner(p, static_cast<int>(blockIdx.x), kPlanes);
        uint16_t* box = reinterpret_cast<uint16_t*>(shared + kStage);
        load_direct_box(p, box, at, kPlanes);
        uint32_t b[2][4][2];
        load_filter(b, n0);
        int tap[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) tap[i] = direct_tap(i / 2 * 8 + quad * 2 + i % 2);
        __syncthreads();
        Moments<1> moments = {};
#pragma unroll 1
        for (int part = 0; part < 4; ++part) {
            const int first = wz * 8 + part * 2;  // plane
            float acc[2][4][4] = {};
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                uint32_t a[2][4];
#pragma unroll
                for (int i = 0; i < 8; ++i) {  // plane i / 4; element: low bit picks the y row, high bit the taps
                    const int voxel = (first + i / 4) * kDirectPlane + (wy * 2 + i % 2) * kDirectRow + group;
                    const int t = k * 4 + i / 2 % 2 * 2;
                    a[i / 4][i % 4] = pair(box, voxel + tap[t], voxel + tap[t + 1]);
                }
                mma_bf16<2, 4>(acc, a, b[k]);
            }
            auto piece = [&](int r, int n) -> bf16* {
                const int z = at.z + first + r / 16, y = at.y + wy * 2 + r / 8 % 2, x = at.x + r % 8;
                if (z >= p.depth || y >= p.height || x >= p.width || n0 + n * 8 >= p.out_channels) return nullptr;
                const size_t voxel = static_cast<size_t>((at.item * p.depth + z) * p.height + y) * p.width + x;
                return p.y + voxel * p.out_channels + n0 + n * 8;
            };
            float shift[4][2];
            load_shift<4>(shift, p.bias == nullptr ? nullptr : p.bias + n0, p.out_channels - n0);
            Moments<1> planes = {};
            const float2 mine = store_tile_for_norm<false, 2, 4>(p.norm, acc, shared + warp * 2048, shift, false, piece,
                                                                 p.y, at.item, n0, p.out_channels, planes[2]);
            planes[0] = mine.x;
            planes[1] = mine.y;
            Merge{}(moments, planes);
        }
        if (p.norm.partial == nullptr) return;
        __syncthreads();
        put_part<8, 1, 32, true>(p.norm, shared, make_float2(moments[0], moments[1]), moments[2], true,
                                 lane_id() % 4 * 8 + folded<4, 8>(), blockIdx.x, n0, p.out_channels);
    }
};

// A block goes over boxes of 8 x 8 x 8 voxels and keeps 32 channels x 32 taps in each warp; the warps' sums are added
// in order at the end.
struct DirectWgrad {
    static constexpr int kThreads = 256, kPlanes = 8, kDy = 512 * 64, kBox = (kPlanes + 2) * kDirectPlane * 2;
    static constexpr int kBuffer = kDy + kBox, kShared = 2 * kBuffer;
    static_assert(kBuffer % 16 == 0 && 8 * 4096 <= kShared, "aligned; the sums reuse the buffers");

    const Conv3dDirectWgradParams& p;
    unsigned char* const shared;

    __device__ __forceinline__ void load(int buffer, int box, int k0) const {
        const DirectCorner at = direct_corner(p, box, kPlanes);
        unsigned char* to = shared + buffer * kBuffer;
        for (int i = static_cast<int>(threadIdx.x); i < 512 * 4; i += kThreads) {
            const int column = i % 4, voxel = i / 4, bx = voxel % 8;
            const int z = at.z + voxel / 64, y = at.y + voxel / 8 % 8, x = at.x + bx, k = k0 + column * 8;
            const bool inside = z < p.depth && y < p.height && x < p.width && k < p.out_channels;
            const int from = ((at.item * p.depth + z) * p.height + y) * p.width + x;
            cp_async16(smem_u32(to) + voxel * 64 + ((column ^ swizzle<4>(bx)) << 4),
                       p.dy + (inside ? static_cast<size_t>(from) * p.out_channels + k : 0), inside);
        }
        load_direct_box(p, reinterpret_cast<uint16_t*>(to + kDy), at, kPlanes);
    }

    // Plane `warp` of the box: 4 groups of 2 y x 8 x voxels.
    __device__ __forceinline__ void multiply(float (&acc)[2][4][4], const unsigned char* buffer, int plane) const {
        const LaneTile lane = lane_tile();
        const int group = lane_id() >> 2, quad = lane_id() & 3;
        const uint16_t* box = reinterpret_cast<const uint16_t*>(buffer + kDy);
        int tap[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) tap[n] = direct_tap(n * 8 + group);
#pragma unroll
        for (int y = 0; y < 8; y += 2) {
            uint32_t a[2][4], b[4][2];
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                const int voxel = plane * 64 + (y + lane.high) * 8 + lane.row;
                ldmatrix_x4_trans(a[m],
                                  smem_u32(buffer) + voxel * 64 + (((m * 2 + lane.low) ^ swizzle<4>(lane.row)) << 4));
            }
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const int voxel = plane * kDirectPlane + y * kDirectRow + quad * 2 + tap[n];
                b[n][0] = pair(box, voxel, voxel + 1);
                b[n][1] = pair(box, voxel + kDirectRow, voxel + kDirectRow + 1);
            }
            mma_bf16<2, 4>(acc, a, b);
        }
    }

    __device__ __forceinline__ void run() const {
        const int k0 = static_cast<int>(blockIdx.y) * 32, warp = warp_id();
        const int first = static_cast<int>(blockIdx.x) * p.boxes_per_block;
        const int last = first + p.boxes_per_block < p.boxes ? first + p.boxes_per_block : p.boxes;
        float acc[2][4][4] = {};
        if (first < last) load(0, first, k0);
        cp_async_commit();
        for (int box = first; box < last; ++box) {
            const int buffer = (box - first) & 1;
            cp_async_wait<0>();
            __syncthreads();
            if (box + 1 < last) load(buffer ^ 1, box + 1, k0);
            cp_async_commit();
            multiply(acc, shared + buffer * kBuffer, warp);
        }
        cp_async_wait<0>();
        __syncthreads();
        // Sums of 8 warps as [32 k][32 taps], added in order.
        float* sums = reinterpret_cast<float*>(shared);
        const int group = lane_id() >> 2, quad = lane_id() & 3;
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            const int k = i / 16 * 16 + i / 2 % 2 * 8 + group, tap = i / 4 % 4 * 8 + quad * 2 + i % 2;
            sums[warp * 1024 + k * 32 + tap] = acc[i / 16][i / 4 % 4][i % 4];
        }
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < 32 * 27; i += kThreads) {
            const int k = i / 27, tap = i % 27;
            float total = 0.0f;
            for (int w = 0; w < 8; ++w) total += sums[w * 1024 + k * 32 + tap];
            const size_t at = static_cast<size_t>(blockIdx.x) * p.out_channels + k0 + k;
            if (k0 + k < p.out_channels) global_store(p.part + at * 27 + tap, total);
        }
    }
};
