// conv3d_walk.cuh: 3x3x3 convolution, stride 1, padding 1, for 16 or 32 summed channels; forward and input gradient (the
// same sum with mirrored taps over the filter read transposed).
//
// A block makes a column of 16 x 8 voxels (y, x) by 16 kWN channels over `planes` planes (z), walking along z two input
// planes at a time. The whole filter stays in shared memory beside two pairs of input planes with their halo, so an
// input element is read 1.4 times and the filter once per column. Each plane feeds the sums of the output planes below,
// level and above at once (the three z taps): four output planes are open, two are finished by each pair and leave the
// registers. Padding is the zero fill of cp.async.
// A warp has kWN groups of 16 voxels (2 y x 8 x) by 16 channels: 2 kWN ldmatrix of the input and 3 of the filter feed
// 12 kWN mma.
#pragma once

#include "conv3d_tile.cuh"

struct Conv3dWalkParams {
    const bf16* x;      // [N, D, H, W, in_channels]
    const bf16* w;      // forward [out_channels, 27, in_channels]; input gradient [in_channels, 27, out_channels]
    const float* bias;  // [out_channels] or null
    bf16* y;            // [N, D, H, W, out_channels]
    int depth, height, width, out_channels;
    int planes, segments;  // output planes of a block; blocks along z
    int column_tiles;      // blocks along the output channels
    int add;               // y += instead of y =
};

template <int kC, int kWN, bool kMirror> struct Walk {
    static constexpr int kThreads = 8 * kWarp, kTileY = 16, kTileX = 8, kN = 16 * kWN, kM = kWN;  // kM: groups of a warp
    static constexpr int kBoxY = kTileY + 2, kBoxX = kTileX + 2, kChunks = kC / 8;
    static constexpr int kVoxel = kC * 2, kPlane = kBoxY * kBoxX * kVoxel, kTap = kN * kC * 2;  // bytes
    static constexpr int kFilter = 27 * kTap, kShared = kFilter + 4 * kPlane;
    static_assert(kShared <= 99 * 1024, "what every card has");
    static_assert(kBoxX % 2 == 0, "the swizzle goes by x alone");

    const Conv3dWalkParams& p;
    const uint32_t shared;
    int z0, z1, item, n0;  // output planes from z0 to before z1; first plane of the batch item; first channel

    __device__ __forceinline__ Walk(const Conv3dWalkParams& params, uint32_t memory) : p(params), shared(memory) {
        int block = static_cast<int>(blockIdx.z);
        n0 = block % p.column_tiles * kN;
        block /= p.column_tiles;
        z0 = block % p.segments * p.planes;
        z1 = z0 + p.planes < p.depth ? z0 + p.planes : p.depth;
        item = block / p.segments * p.depth;
    }

    __device__ __forceinline__ int x0() const { return static_cast<int>(blockIdx.x) * kTileX; }
    __device__ __forceinline__ int y0() const { return static_cast<int>(blockIdx.y) * kTileY; }
    __device__ __forceinline__ uint32_t plane(int slot) const { return shared + kFilter + slot * kPlane; }

    __device__ __forceinline__ void load_filter() const {
        constexpr int kRow = kMirror ? kN / 8 : kChunks, kRows = kMirror ? kC : kN;
        for (int i = static_cast<int>(threadIdx.x); i < 27 * kRows * kRow; i += kThreads) {
            const int column = i % kRow, row = i / kRow % kRows, tap = i / (kRow * kRows);
            const int n = n0 + (kMirror ? column * 8 : row);
            const bool present = n < p.out_channels;
            const bf16* from = kMirror ? p.w + (row * 27 + 26 - tap) * p.out_channels + (present ? n : 0)
                                       : p.w + ((present ? n : 0) * 27 + tap) * kC + column * 8;
            cp_async16(shared + tap * kTap + chunk_offset<kRow>(row, column), from, present);
        }
    }

    // Input planes z and z + 1.
    __device__ __forceinline__ void load_planes(int z_first, uint32_t to) const {
#pragma unroll 1  // unrolled, its address arithmetic moves out of the walk and takes the registers of the sums
        for (int i = static_cast<int>(threadIdx.x); i < 2 * kBoxY * kBoxX * kChunks; i += kThreads) {
            const int column = i % kChunks, voxel = i / kChunks;
            const int bx = voxel % kBoxX, x = x0() + bx - 1, y = y0() + voxel / kBoxX % kBoxY - 1;
            const int z = z_first + voxel / (kBoxX * kBoxY);
            const bool inside = static_cast<unsigned>(z) < static_cast<unsigned>(p.depth) &&
                                static_cast<unsigned>(y) < static_cast<unsigned>(p.height) &&
                                static_cast<unsigned>(x) < static_cast<unsigned>(p.width);
            const int at = inside ? ((item + z) * p.height + y) * p.width + x : 0;
            cp_async16(to + voxel * kVoxel + ((column ^ swizzle<kChunks>(bx)) << 4),
                       p.x + static_cast<size_t>(at) * kC + column * 8, inside);
        }
    }

    // Where the lane's rows of the operands begin: the input at each x tap, the filter.
    struct Lane {
        uint32_t a[3], b;
    };

    __device__ __forceinline__ Lane lane(int wm, int wn) const {
        const LaneTile t = lane_tile();
        Lane at;
#pragma unroll
        for (int tx = 0; tx < 3; ++tx) {
            const int bx = t.row + tx, voxel = (wm * kM * 2 + t.low) * kBoxX + bx;
            at.a[tx] = voxel * kVoxel + ((t.high ^ swizzle<kChunks>(bx)) << 4);
        }
        at.b = shared + (kMirror ? chunk_offset<kN / 8>(t.low * 8 + t.row, wn * 2 + t.high)
                                 : chunk_offset<kChunks>(wn * 16 + t.high * 8 + t.row, t.low));
        return at;
    }

    // Sums of open output planes kFirst to kLast (of 0 to 3: below the pair, its two, above) from a pair of input planes.
    // z tap tz of input plane i belongs to output plane 2 - tz + i.
    template <int kFirst, int kLast>
    __device__ __forceinline__ void multiply(float (&acc)[4 * kM][2][4], const Lane& at, uint32_t planes) const {
#pragma unroll 1
        for (int ty = 0; ty < 3; ++ty) {
#pragma unroll
            for (int step = 0; step < 3 * kC / 16; ++step) {
                const int tx = step / (kC / 16), k = step % (kC / 16);
                uint32_t a[2 * kM][4];
#pragma unroll
                for (int i = 0; i < 2 * kM; ++i) {
                    const uint32_t row = planes + ty * (kBoxX * kVoxel) + (at.a[tx] ^ (k * 32));
                    ldmatrix_x4(a[i], row + i / kM * kPlane + i % kM * (2 * kBoxX * kVoxel));
                }
#pragma unroll
                for (int tz = 0; tz < 3; ++tz) {
                    constexpr int kLow = kFirst, kHigh = kLast;
                    const int first = 2 - tz < kLow ? kLow : 2 - tz, last = 3 - tz > kHigh ? kHigh : 3 - tz;
                    if (first > last) continue;
                    uint32_t b[2][2];
                    const uint32_t tap = (tz * 9 + tx) * kTap + ty * (3 * kTap);
                    load_b_pair(b[0], b[1], kMirror ? at.b + tap + k * (16 * kN * 2) : (at.b ^ (k * 32)) + tap, kMirror);
                    if (first < last) {
                        mma_bf16<2 * kM, 2>(sums<2 * kM>(acc, first * kM), a, b);
                    } else {
                        mma_bf16<kM, 2>(sums<kM>(acc, first * kM), fragments<kM>(a, (first + tz - 2) * kM), b);
                    }
                }
            }
        }
    }

    // The planes that a pair has not finished move down; two new ones begin.
    __device__ __forceinline__ void move_down(float (&acc)[4 * kM][2][4]) const {
#pragma unroll
        for (int i = 0; i < 2 * kM * 8; ++i) {
            acc[i / 8][i / 4 % 2][i % 4] = acc[2 * kM + i / 8][i / 4 % 2][i % 4];
            acc[2 * kM + i / 8][i / 4 % 2][i % 4] = 0.0f;
        }
    }

    __device__ __forceinline__ void run() const {
        const int warp = warp_id(), wn = warp % kWN, wm = warp / kWN;
        const Lane at = lane(wm, wn);
        load_filter();
        load_planes(z0 - 1, plane(0));
        cp_async_commit();
        float acc[4 * kM][2][4] = {};
        uint32_t now = plane(0), next = plane(2);
        int z = z0 - 1;  // input planes z and z + 1 are being multiplied
        cp_async_wait<0>();
        __syncthreads();
        load_planes(z + 2, next);
        cp_async_commit();
        multiply<2, 3>(acc, at, now);
        for (z += 2; z <= z1; z += 2) {
            move_down(acc);
            const uint32_t swap = now;
            now = next;
            next = swap;
            cp_async_wait<0>();
            __syncthreads();
            if (z + 2 <= z1) load_planes(z + 2, next);
            cp_async_commit();
            if (z + 1 < z1) {
                multiply<0, 3>(acc, at, now);
            } else {
                multiply<0, 1>(acc, at, now);
            }
            store(sums<kM>(acc, 0), z - 1, wm, n0 + wn * 16);
            if (z < z1) store(sums<kM>(acc, kM), z, wm, n0 + wn * 16);
        }
        cp_async_wait<0>();
    }

    // One output plane, straight from the registers: 4 bytes a lane, 16 bytes of each voxel at a time.
    __device__ __forceinline__ void store(const float (&acc)[kM][2][4], int z, int wm, int first_channel) const {
        float shift[2][2];
        load_shift<2>(shift, p.bias == nullptr ? nullptr : p.bias + first_channel, p.out_channels - first_channel);
        const int group = lane_id() >> 2, quad = lane_id() & 3, x = x0() + group;
#pragma unroll
        for (int half = 0; half < 2 * kM; ++half) {
            const int y = y0() + wm * kM * 2 + half;
            if (y >= p.height || x >= p.width) continue;
            const size_t voxel = static_cast<size_t>((item + z) * p.height + y) * p.width + x;
            bf16* out = p.y + voxel * p.out_channels + first_channel + quad * 2;
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                if (first_channel + n * 8 >= p.out_channels) continue;
                float lo = acc[half / 2][n][half % 2 * 2] + shift[n][0];
                float hi = acc[half / 2][n][half % 2 * 2 + 1] + shift[n][1];
                if (p.add != 0) add_bf16x2(lo, hi, out + n * 8);
                global_store(reinterpret_cast<uint32_t*>(out + n * 8), pack_bf16(lo, hi));
            }
        }
    }
};
