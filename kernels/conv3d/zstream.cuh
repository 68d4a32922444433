// conv3d/zstream.cuh: 3x3x3 convolution, stride 1, padding 1, for 16 or 32 reduction channels; forward and input
// gradient (the same sum with mirrored taps over the filter read transposed).
//
// A block makes a column of 16 x 8 voxels (y, x) by 16 kWN channels over `planes` planes (z), streaming along z two
// input planes at a time. The whole filter stays in shared memory beside two pairs of input planes with their halo, so
// an input element is read 1.4 times and the filter once per column. Each plane feeds the sums of the output planes
// below, level and above at once (the three z taps): four output planes are open, two are finished by each pair and
// leave the registers. Padding is the zero fill of cp.async.
// A warp has kWN groups of 16 voxels (2 y x 8 x) by 16 channels: 2 kWN ldmatrix of the input and 3 of the filter feed
// 12 kWN mma.
#pragma once

#include "epilogue.cuh"

struct Conv3dZStreamParams {
    const bf16* x;      // [N, D, H, W, in_channels]
    const bf16* w;      // forward [out_channels, 27, in_channels]; input gradient [in_channels, 27, out_channels]
    const float* bias;  // [out_channels] or null
    bf16* y;            // [N, D, H, W, out_channels]
    int depth, height, width, out_channels;
    int planes, segments;  // output planes of a block; blocks along z
    int column_tiles;      // blocks along the output channels
    int add;               // y += instead of y =
    Conv3dNorm norm;
};

template <int kC, int kWN, bool kMirror> struct ZStream {
    static constexpr int kThreads = 8 * kWarp, kTileY = 16, kTileX = 8, kN = 16 * kWN,
                         kM = kWN;  // kM: groups of a warp
    static constexpr int kBoxY = kTileY + 2, kBoxX = kTileX + 2, kChunks = kC / 8;
    static constexpr int kVoxel = kC * 2, kPlane = kBoxY * kBoxX * kVoxel, kTap = kN * kC * 2;  // bytes
    static constexpr int kFilter = 27 * kTap, kShared = kFilter + 4 * kPlane;
    static_assert(kShared <= 99 * 1024, "what every card has");
    static_assert(kBoxX % 2 == 0, "the swizzle goes by x alone");

    const Conv3dZStreamParams& p;
    const uint32_t shared;
    int z0, z1, item, n0;  // output planes from z0 to before z1; first plane of the batch item; first channel

    __device__ __forceinline__ ZStream(const Conv3dZStreamParams& params, uint32_t memory) : p(params), shared(memory) {
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

    __device__ __forceinline__ uint32_t other(uint32_t pair) const { return plane(0) + plane(2) - pair; }

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
#pragma unroll 1  // unrolled, its address arithmetic moves out of the loop and takes the registers of the sums
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

    // Sums of open output planes kFirst to kLast (of 0 to 3: below the pair, its two, above) from a pair of input
    // planes.
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
                    load_b_pair(b[0], b[1], kMirror ? at.b + tap + k * (16 * kN * 2) : (at.b ^ (k * 32)) + tap,
                                kMirror);
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
        float part = 0.0f;
        uint32_t now = plane(0);
        int z = z0 - 1;  // input planes z and z + 1 are being multiplied
        cp_async_wait<0>();
        __syncthreads();
        load_planes(z + 2, plane(2));
        cp_async_commit();
        multiply<2, 3>(acc, at, now);
        for (z += 2; z <= z1; z += 2) {
            move_down(acc);
            now = other(now);
            cp_async_wait<0>();
            __syncthreads();
            if (z + 2 <= z1) load_planes(z + 2, other(now));
            cp_async_commit();
            if (z + 1 < z1) {
                multiply<0, 3>(acc, at, now);
            } else {
                multiply<0, 1>(acc, at, now);
            }
            store(sums<kM>(acc, 0), z - 1, part);
            if (z < z1) store(sums<kM>(acc, kM), z, part);
        }
        cp_async_wait<0>();
        if (p.norm.partial != nullptr) finish_part(part);
    }

    // Of a finished plane, what a lane has: rows y to y + 2 kM - 1 of column x, channels lane % 4 * 2 and the next of
    // the 8 from first_channel on, and of the 8 behind them. Found anew for each plane: registers are scarce.
    struct Spot {
        int lane, y, x, first_channel;
    };

    __device__ __forceinline__ Spot spot() const {
        const int thread = thread_anew(), lane = thread % kWarp, warp = thread / kWarp;
        const int n = block_z_anew() % p.column_tiles * kN;
        return {lane, y0() + warp / kWN * kM * 2, x0() + lane / 4, n + warp % kWN * 16};
    }

    using Plane =
        uint32_t[2 * kM][2];  // by row and group of 8 channels: two channels as they are stored, zeros outside

    // One output plane, straight from the registers: 4 bytes a lane, 16 bytes of each voxel at a time.
    __device__ __forceinline__ void store(const float (&acc)[kM][2][4], int z, float& part) const {
        const Spot at = spot();
        float shift[2][2];
        load_shift<2>(shift, p.bias == nullptr ? nullptr : p.bias + at.first_channel,
                      p.out_channels - at.first_channel);
        Plane plane = {};
#pragma unroll
        for (int half = 0; half < 2 * kM; ++half) {
            if (!is_inside(at, half)) continue;
            bf16* out = p.y + place(z, at, half);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                if (at.first_channel + n * 8 >= p.out_channels) continue;
                float lo = acc[half / 2][n][half % 2 * 2] + shift[n][0];
                float hi = acc[half / 2][n][half % 2 * 2 + 1] + shift[n][1];
                if (p.add != 0) add_bf16x2(lo, hi, out + n * 8);
                plane[half][n] = pack_bf16(lo, hi);
                if (kMirror && p.norm.y != nullptr) continue;  // gate writes
                global_store(reinterpret_cast<uint32_t*>(out + n * 8), plane[half][n]);
            }
        }
        if (p.norm.partial == nullptr) return;
        if (kMirror) {
            if (p.norm.y != nullptr) gate(plane, z, at);
            add_sums(plane, z, at, part);
        } else {
            add_moments(plane, z, at, part);
        }
    }

    __device__ __forceinline__ bool is_inside(const Spot& at, int half) const {
        return at.y + half < p.height && at.x < p.width;
    }
    __device__ __forceinline__ size_t place(int z, const Spot& at, int half) const {
        const size_t voxel = static_cast<size_t>((item + z) * p.height + at.y + half) * p.width + at.x;
        return voxel * p.out_channels + at.first_channel + at.lane % 4 * 2;
    }

    // Voxels of a warp's plane.
    __device__ __forceinline__ int count(const Spot& at) const {
        const int y = p.height - at.y, x = p.width - x0();
        return y <= 0 ? 0 : (y < 2 * kM ? y : 2 * kM) * (x < kTileX ? x : kTileX);
    }

    // Adds a plane's moments to those of the planes before it. Lanes from 16 on hold the squares of the channels whose
    // means the first 16 hold.
    __device__ __forceinline__ void add_moments(const Plane& plane, int z, const Spot& at, float& part) const {
        const float voxels = static_cast<float>(count(at)), before = static_cast<float>(z - z0);
        float v[4] = {}, mean[4];
#pragma unroll
        for (int i = 0; i < 4 * kM; ++i) {
            float lo, hi;
            unpack_bf16(plane[i / 2][i % 2], lo, hi);
            v[i % 2 * 2] += lo;
            v[i % 2 * 2 + 1] += hi;
        }
        const float total = fold<4>(v), plane_mean = voxels > 0.0f ? total / voxels : 0.0f;
        unfold<4>(plane_mean, mean);
        float square[4] = {};
#pragma unroll
        for (int i = 0; i < 4 * kM; ++i) {
            if (!is_inside(at, i / 2)) continue;
            float lo, hi;
            unpack_bf16(plane[i / 2][i % 2], lo, hi);
            lo -= mean[i % 2 * 2];
            hi -= mean[i % 2 * 2 + 1];
            square[i % 2 * 2] = fmaf(lo, lo, square[i % 2 * 2]);
            square[i % 2 * 2 + 1] = fmaf(hi, hi, square[i % 2 * 2 + 1]);
        }
        // Merge, for a set as large as each of those before.
        const float squares = fold<4>(square), share = 1.0f / (before + 1.0f);
        const float d = plane_mean - __shfl_sync(kFullMask, part, at.lane % 16);
        part += at.lane < 16 ? d * share : fmaf(d * d, voxels * before * share, squares);
    }

    // The gradient before the activation in the place of the gradient, by the sign of the norm's output; and to where
    // it is wanted.
    __device__ __forceinline__ void gate(Plane& plane, int z, const Spot& at) const {
#pragma unroll
        for (int half = 0; half < 2 * kM; ++half) {
            if (!is_inside(at, half)) continue;
            const size_t offset = place(z, at, half);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                if (at.first_channel + n * 8 >= p.out_channels) continue;
                float g[2], y[2];
                unpack_bf16(plane[half][n], g[0], g[1]);
                unpack_bf16(global_load(reinterpret_cast<const uint32_t*>(p.norm.y + offset + n * 8)), y[0], y[1]);
                plane[half][n] =
                    pack_bf16(g[0] * (y[0] > 0.0f ? 1.0f : p.norm.slope), g[1] * (y[1] > 0.0f ? 1.0f : p.norm.slope));
                global_store(reinterpret_cast<uint32_t*>(p.norm.g + offset + n * 8), plane[half][n]);
            }
        }
    }

    // Adds a plane's sums of g, in the first 16 lanes, and g (x - mean), in the others.
    __device__ __forceinline__ void add_sums(const Plane& plane, int z, const Spot& at, float& part) const {
        const int channel = at.first_channel + lane_channel();
        const size_t item_first = static_cast<size_t>(block_z_anew() / (p.column_tiles * p.segments)) * p.out_channels;
        const bool loads = at.lane < 16 && channel < p.out_channels;
        const NormSide mine = loads ? NormSide::load(p.norm, item_first, channel) : NormSide{};
        const bf16* first = p.norm.x + place(z, at, 0);
        float sum_g[4] = {}, sum_gx[4] = {};
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            if (at.first_channel + n * 8 >= p.out_channels) continue;
            uint32_t raw[2 * kM];
#pragma unroll
            for (int half = 0; half < 2 * kM; ++half) {
                const bf16* from = first + (n * 8 + half * p.width * p.out_channels);
                raw[half] = is_inside(at, half) ? global_load(reinterpret_cast<const uint32_t*>(from)) : 0;
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {  // one channel at a time: registers are scarce
                const NormSide side = mine.of_lane(p.norm, at.lane % 4 + fold_lane<4, 4>(n * 2 + i));
#pragma unroll
                for (int half = 0; half < 2 * kM; ++half) {  // outside, dy is 0, and with it g
                    float x[2], g[2];
                    unpack_bf16(raw[half], x[0], x[1]);
                    unpack_bf16(plane[half][n], g[0], g[1]);
                    side.gate(p.norm, g[i], x[i]);
                    sum_g[n * 2 + i] += g[i];
                    sum_gx[n * 2 + i] = fmaf(g[i], x[i], sum_gx[n * 2 + i]);
                }
            }
        }
        const float g = fold<4>(sum_g), gx = fold<4>(sum_gx);
        part += at.lane < 16 ? g : gx;
    }

    // Of the warp's 16, the channel whose part this lane has: folded pairs of neighbours from two groups of 8.
    __device__ __forceinline__ int lane_channel() const {
        const int i = folded<4, 4>();
        return i / 2 * 8 + (lane_id() & 3) * 2 + i % 2;
    }

    __device__ __forceinline__ void finish_part(float sum) const {
        DYNAMIC_SHARED(memory, kShared);
        const Spot here = spot();
        const int channel = here.first_channel + lane_channel();
        float2 part = make_float2(sum, __shfl_down_sync(kFullMask, sum, 16));
        if (kMirror && channel < p.out_channels) {
            part.y *= norm_rstd(p.norm, static_cast<size_t>(item / p.depth) * p.out_channels, channel);
        }
        const int columns = static_cast<int>(gridDim.x * gridDim.y);
        const int column = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x);
        const long long at = static_cast<long long>(blockIdx.z) / p.column_tiles * columns + column;
        __syncthreads();  // all warps are done with the operands
        put_part<kThreads / kWarp, kWN, 16, !kMirror>(p.norm, memory, part, static_cast<float>(count(here) * (z1 - z0)),
                                                      lane_id() < 16, lane_channel(), at, here.first_channel / kN * kN,
                                                      p.out_channels);
    }
};
