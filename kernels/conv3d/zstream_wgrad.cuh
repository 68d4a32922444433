// conv3d/zstream_wgrad.cuh: filter gradient of the 3x3x3 convolution, stride 1, padding 1, channels multiples of 16:
//   dw[k, t, c] = sum over voxels v of dy[v, k] x[v + t - 1, c]
//
// Grid: tiles of 16 kKF output by 16 kCF input channels (fastest), then runs of `steps` planes. A block keeps the sums
// of its tile, all 27 taps, in registers while it streams along z over columns of `rows` x 8 kStrips voxels (y, x): at
// each step one plane of x with its (y, x) halo meets the dy planes above, level and below it. Two planes of x and four
// of dy lie in shared memory, one of each being copied, so that along a column both are read once. Padding is the zero
// fill of cp.async.
// Warps: 3 z taps x kKF x kCF x kGroups groups of voxels (strips across x, bands along y), twelve in all, 9 taps of
// 16 x 16 sums each. A warp goes down its strip two rows of dy at a time; the rows of x that the y taps share stay in
// registers: 4 ldmatrix feed 18 mma. The groups' sums are added in order, then go to `part` [runs][K][27][C] and are
// added in order by conv3d_sum_splits: neither depends on timing.
#pragma once

#include "tile.cuh"

struct Conv3dZStreamWgradParams {
    const bf16* x;   // [N, D, H, W, C]
    const bf16* dy;  // [N, D, H, W, K]
    float* part;     // [runs, K, 27, C]
    int depth, height, width, in_channels, out_channels;
    int rows;           // of a column: a multiple of 2 kBands, at most kRows
    int planes, steps;  // of all columns of the batch, plane after plane of each; of a block
};

template <int kKF, int kCF> struct ZStreamWgrad {
    static constexpr int kThreads = 12 * kWarp, kGroups = 4 / (kKF * kCF);
    static constexpr int kStrips = kGroups > 1 ? 2 : 1, kBands = kGroups / kStrips;
    static constexpr int kRows = 16, kCols = 8 * kStrips, kBoxX = kCols + 2;  // extent in y and x; in x with halo
    static constexpr int kXVoxel = kCF * 32, kDyVoxel = kKF * 32, kXRow = kBoxX * kXVoxel;  // bytes
    static constexpr int kXPlane = (kRows + 2) * kXRow, kDyPlane = kRows * kCols * kDyVoxel;
    static constexpr int kDyBase = 2 * kXPlane, kShared = kDyBase + 4 * kDyPlane;
    static constexpr int kGroupWarps = 12 / kGroups, kSums = 3 * 6 * 4;  // of a thread
    static_assert(kShared <= 99 * 1024, "what every card has");
    static_assert(kGroups == 1 || kGroupWarps * kWarp * kSums * 4 <= kShared, "sums of a group reuse the planes");
    static_assert(kBoxX % 2 == 0, "the swizzle goes by x alone");

    const Conv3dZStreamWgradParams& p;
    unsigned char* const memory;
    const uint32_t shared;
    int k0, c0;  // first channels of the tile

    // Part of a column: first voxel (y, x), first plane of its batch item.
    struct Column {
        int item, y, x;
    };

    __device__ __forceinline__ ZStreamWgrad(const Conv3dZStreamWgradParams& params, unsigned char* at)
        : p(params), memory(at), shared(smem_u32(at)) {}

    __device__ __forceinline__ Column column(int i) const {
        const int columns_x = ceil_div(p.width, kCols), columns_y = ceil_div(p.height, p.rows);
        Column at;
        at.x = i % columns_x * kCols;
        i /= columns_x;
        at.y = i % columns_y * p.rows;
        at.item = i / columns_y * p.depth;
        return at;
    }

    // Plane z of a column, kHalo voxels more on each side: zeros outside the volume or the channels.
    template <int kChunks, int kHalo>
    __device__ __forceinline__ void load(const bf16* from, int channels, int channel, const Column& at, int z,
                                         uint32_t to) const {
        constexpr int kX = kCols + 2 * kHalo;
        const int pieces = (p.rows + 2 * kHalo) * kX * kChunks;
        const bool present = static_cast<unsigned>(z) < static_cast<unsigned>(p.depth);
#pragma unroll 1  // unrolled, its address arithmetic takes the registers of the sums
        for (int i = static_cast<int>(threadIdx.x); i < pieces; i += kThreads) {
            const int chunk = i % kChunks, voxel = i / kChunks, bx = voxel % kX;
            const int y = at.y + voxel / kX - kHalo, x = at.x + bx - kHalo, c = channel + chunk * 8;
            const bool inside = present && static_cast<unsigned>(y) < static_cast<unsigned>(p.height) &&
                                static_cast<unsigned>(x) < static_cast<unsigned>(p.width) && c < channels;
            const int voxels = ((at.item + z) * p.height + y) * p.width + x;
            cp_async16(to + voxel * (kChunks * 16) + ((chunk ^ swizzle<kChunks>(bx)) << 4),
                       from + (inside ? static_cast<size_t>(voxels) * channels + c : 0), inside);
        }
    }

    __device__ __forceinline__ void load_x(const Column& at, int z, int slot) const {
        load<kCF * 2, 1>(p.x, p.in_channels, c0, at, z, shared + slot * kXPlane);
    }

    __device__ __forceinline__ void load_dy(const Column& at, int z, int slot) const {
        load<kKF * 2, 0>(p.dy, p.out_channels, k0, at, z, shared + kDyBase + slot * kDyPlane);
    }

    // acc[tx][0][2 ty + half of the channels]: `rows` rows of dy, two at a time, against four of x.
    __device__ __forceinline__ void multiply(float (&acc)[3][1][6][4], uint32_t dy, uint32_t x,
                                             const uint32_t (&x_lane)[3], int rows) const {
        uint32_t low[3][4];  // first half of the channels of two rows, second half
#pragma unroll
        for (int tx = 0; tx < 3; ++tx) ldmatrix_x4_trans(low[tx], x + x_lane[tx]);
#pragma unroll 1
        for (int y = 0; y < rows; y += 2) {
            x += 2 * kXRow;
            uint32_t a[1][4];
            ldmatrix_x4_trans(a[0], dy);
            dy += 2 * kCols * kDyVoxel;
#pragma unroll
            for (int tx = 0; tx < 3; ++tx) {
                uint32_t (&l)[4] = low[tx], h[4];
                ldmatrix_x4_trans(h, x + x_lane[tx]);
                const uint32_t b[6][2] = {{l[0], l[1]}, {l[2], l[3]}, {l[1], h[0]},
                                          {l[3], h[2]}, {h[0], h[1]}, {h[2], h[3]}};
                mma_bf16<1, 6>(acc[tx], a, b);
#pragma unroll
                for (int i = 0; i < 4; ++i) l[i] = h[i];
            }
        }
    }

    // What a warp works on: z tap, halves of the tile, group of voxels; where its lanes begin in the planes.
    struct Warp {
        int tz, k, c, group;
        uint32_t dy_lane, x_lane[3];
    };

    __device__ __forceinline__ Warp warp() const {
        const LaneTile lane = lane_tile();
        const int i = warp_id();
        Warp w = {i % 3, i / 3 % kKF * 16, i / (3 * kKF) % kCF * 16, i / (3 * kKF * kCF), 0, {}};
        const int left = w.group % kStrips * 8, top = w.group / kStrips * (p.rows / kBands);
        w.dy_lane = kDyBase + ((top + lane.high) * kCols + left + lane.row) * kDyVoxel +
                    (((w.k / 8 + lane.low) ^ swizzle<kKF * 2>(left + lane.row)) << 4);
#pragma unroll
        for (int tx = 0; tx < 3; ++tx) {
            const int x = left + lane.row + tx;
            w.x_lane[tx] =
                (top + lane.low) * kXRow + x * kXVoxel + (((w.c / 8 + lane.high) ^ swizzle<kCF * 2>(x)) << 4);
        }
        return w;
    }

    // Planes z to z + count - 1 of a column. Plane z + j of x lies in slot j % 2, plane z - 1 + j of dy in slot j % 4.
    __device__ __forceinline__ void stream(float (&acc)[3][1][6][4], const Warp& w, const Column& at, int z,
                                           int count) const {
        __syncthreads();  // the planes of the column before are read
        load_x(at, z, 0);
        for (int j = 0; j < 3; ++j) load_dy(at, z - 1 + j, j);
        cp_async_commit();
        for (int j = 0; j < count; ++j) {
            cp_async_wait<0>();
            __syncthreads();
            if (j + 1 < count) {
                load_x(at, z + j + 1, (j + 1) & 1);
                load_dy(at, z + j + 2, (j + 3) & 3);
            }
            cp_async_commit();
            const int above = j + 2 - w.tz;  // z tap 0 takes x one plane below dy
            multiply(acc, shared + w.dy_lane + (above & 3) * kDyPlane, shared + (j & 1) * kXPlane, w.x_lane,
                     p.rows / kBands);
        }
    }

    // The groups' sums into those of group 0, in order.
    __device__ __forceinline__ void add_groups(float (&acc)[3][1][6][4], int group) const {
        float* sums = reinterpret_cast<float*>(memory) + warp_id() % kGroupWarps * (kSums * kWarp) + lane_id();
        float (&own)[kSums] = reinterpret_cast<float (&)[kSums]>(acc);
#pragma unroll 1
        for (int g = 1; g < kGroups; ++g) {
            __syncthreads();  // planes, or the sums of the group before, are read
            if (group == g) {
#pragma unroll
                for (int i = 0; i < kSums; ++i) sums[i * kWarp] = own[i];
            }
            __syncthreads();
            if (group == 0) {
#pragma unroll
                for (int i = 0; i < kSums; ++i) own[i] += sums[i * kWarp];
            }
        }
    }

    __device__ __forceinline__ void run() {
        const int c_tiles = ceil_div(p.in_channels, 16 * kCF), tiles = ceil_div(p.out_channels, 16 * kKF) * c_tiles;
        const int tile = static_cast<int>(blockIdx.x) % tiles, split = static_cast<int>(blockIdx.x) / tiles;
        k0 = tile / c_tiles * 16 * kKF;
        c0 = tile % c_tiles * 16 * kCF;
        const Warp w = warp();
        float acc[3][1][6][4] = {};
        int plane = split * p.steps;
        const int last = plane + p.steps < p.planes ? plane + p.steps : p.planes;
        while (plane < last) {
            const int z = plane % p.depth;
            const int count = p.depth - z < last - plane ? p.depth - z : last - plane;
            stream(acc, w, column(plane / p.depth), z, count);
            plane += count;
        }
        add_groups(acc, w.group);
        if (w.group == 0) store(acc, w.tz, k0 + w.k, c0 + w.c, split);
    }

    __device__ __forceinline__ void store(const float (&acc)[3][1][6][4], int tz, int k, int c, int split) const {
        const int group = lane_id() >> 2, quad = lane_id() & 3;
        if (k >= p.out_channels || c >= p.in_channels) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const size_t row = static_cast<size_t>(split) * p.out_channels + k + half * 8 + group;
            float* from = p.part + (row * 27 + tz * 9) * p.in_channels + c + quad * 2;
#pragma unroll
            for (int i = 0; i < 18; ++i) {  // tap (i / 6, i / 2 % 3), half i % 2 of the channels
                const float (&v)[4] = acc[i / 2 % 3][0][i / 6 * 2 + i % 2];
                global_store(reinterpret_cast<float2*>(from + i / 2 * p.in_channels + i % 2 * 8),
                             make_float2(v[half * 2], v[half * 2 + 1]));
            }
        }
    }
};
