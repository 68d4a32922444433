// conv3d/spatial.cuh: 3x3x3 convolution, stride 1, padding 1, input and output channels multiples of 16; forward and
// input gradient (the same sum with mirrored taps over the filter read transposed).
//
// A block makes a box of kTileZ x kTileY x 8 output voxels by kN channels. The input box with its halo lies in
// shared memory, 16 channels at a time in two buffers, so that each input element is read about twice per block
// column and not 27 times; padding is the zero fill of cp.async. The filter streams through a ring of three stages,
// each the three z taps of one (y, x) tap; every block reads all of it, so twice the voxels (`_z8`) halve that.
// A warp makes 4 planes (z) of 16 voxels (2 y x 8 x). Six input planes serve all three z taps: 6 ldmatrix of the
// input and 3 * kNF / 2 of the filter feed 12 * kNF mma.
#pragma once

#include "epilogue.cuh"

struct Conv3dSpatialParams {
    const bf16* x;      // [N, D, H, W, in_channels]
    const bf16* w;      // forward [out_channels, 27, in_channels]; input gradient [in_channels, 27, out_channels]
    const float* bias;  // [out_channels] or null
    bf16* y;            // [N, D, H, W, out_channels]
    int depth, height, width, in_channels, out_channels;
    int tiles_y, tiles_x;
    int add;  // y += instead of y =
    Conv3dNorm norm;
};

template <int kWZ, int kWY, int kWN, int kNF, bool kMirror> struct Spatial {
    static constexpr int kThreads = kWarp * kWZ * kWY * kWN;
    static constexpr int kTileZ = 4 * kWZ, kTileY = 2 * kWY, kTileX = 8, kN = 8 * kWN * kNF;
    static constexpr int kBoxZ = kTileZ + 2, kBoxY = kTileY + 2, kBoxX = kTileX + 2;
    static constexpr int kChannels = 16, kStages = 3;
    static constexpr int kPlane = kBoxY * kBoxX * 32, kBox = kBoxZ * kPlane;  // bytes
    static constexpr int kTap = kN * 32, kStage = 3 * kTap;
    static constexpr int kShared = 2 * kBox + kStages * kStage;
    static_assert(kShared <= 99 * 1024, "what every card has");
    // The epilogue reuses the boxes and the stages: tiles of the warps, behind them what they leave for a norm.
    static constexpr int kWarps = kThreads / kWarp, kTiles = 4 * kNF * 256 * kWarps;
    static constexpr int kNormPlace = kTiles > 2 * kBox ? kTiles : 2 * kBox;
    static_assert(kNormPlace + kWarps * (8 * kNF * 8 + 4) <= kShared, "room for the epilogue");
    // A box must be complete two steps before it is needed, so it is loaded in the first kParts of nine steps.
    static constexpr int kParts = 7, kPart = ceil_div(ceil_div(kBoxZ * kBoxY * kBoxX * 2, kParts), kThreads);

    const Conv3dSpatialParams& p;
    unsigned char* const shared;
    // Corner of the tile: z, y, x, and the batch item's first plane. In shared memory, because registers are scarce.
    int* const place;

    __device__ __forceinline__ Spatial(const Conv3dSpatialParams& params, unsigned char* memory, int* corner)
        : p(params), shared(memory), place(corner) {
        if (threadIdx.x == 0) {
            int tile = static_cast<int>(blockIdx.x);
            place[2] = tile % p.tiles_x * kTileX;
            tile /= p.tiles_x;
            place[1] = tile % p.tiles_y * kTileY;
            place[0] = tile / p.tiles_y * kTileZ;
            place[3] = static_cast<int>(blockIdx.z) * p.depth;
        }
        __syncthreads();
    }

    __device__ __forceinline__ int first_channel() const { return static_cast<int>(blockIdx.y) * kN; }
    __device__ __forceinline__ uint32_t box(int chunk) const { return smem_u32(shared) + (chunk & 1) * kBox; }
    __device__ __forceinline__ uint32_t stage(int i) const { return smem_u32(shared) + 2 * kBox + i * kStage; }

    // Part `part` of the input box, channels 16 chunk to 16 chunk + 15.
    __device__ __forceinline__ void load_box(int chunk, int part) const {
#pragma unroll 1
        for (int i = 0; i < kPart; ++i) {
            const int piece = (part * kPart + i) * kThreads + static_cast<int>(threadIdx.x);
            const int voxel = piece >> 1, half = piece & 1;
            const int bx = voxel % kBoxX, by = voxel / kBoxX % kBoxY, bz = voxel / (kBoxX * kBoxY);
            const int z = place[0] + bz - 1, y = place[1] + by - 1, x = place[2] + bx - 1;
            const bool inside = static_cast<unsigned>(z) < static_cast<unsigned>(p.depth) &&
                                static_cast<unsigned>(y) < static_cast<unsigned>(p.height) &&
                                static_cast<unsigned>(x) < static_cast<unsigned>(p.width);
            const int at = inside ? ((place[3] + z) * p.height + y) * p.width + x : 0;
            const bf16* source = p.x + static_cast<size_t>(at) * p.in_channels + chunk * kChannels + half * 8;
            if (bz < kBoxZ) {
                cp_async16(box(chunk) + voxel * 32 + ((half ^ swizzle<2>(bx)) << 4), source, inside);
            }
        }
    }

    // What this thread copies of each filter stage: offsets of its piece in the filter, for the first chunk and tap,
    // and in the stage. Where a stage has more pieces than the block has threads, the next one lies kSkip z taps on.
    struct Filter {
        int from, to;
    };
    static constexpr int kPieces = 3 * kN * 2, kSkip = ceil_div(kThreads, 2 * kN);
    static_assert(kPieces <= kThreads || kThreads % (2 * kN) == 0, "whole z taps");
    static constexpr int kAbsent = 1 << 30;  // in `to`: zeros, for a channel that does not exist

    __device__ __forceinline__ Filter filter() const {
        const int i = static_cast<int>(threadIdx.x), tz = i / (2 * kN);
        const int column = i % (kN / 8), k = i / (kN / 8) % kChannels;
        const int n = first_channel() + (kMirror ? column * 8 : i / 2 % kN);
        const bool present = n < p.out_channels;
        Filter f;
        if (kMirror) {  // rows of the reduction channel, kN output channels each
            f.from = (k * 27 + (26 - tz * 9)) * p.out_channels + (present ? n : 0);
            f.to = tz * kTap + chunk_offset<kN / 8>(k, column);
        } else {  // rows of the output channel, 16 reduction channels each
            f.from = ((present ? n : 0) * 27 + tz * 9) * p.in_channels + (i & 1) * 8;
            f.to = tz * kTap + chunk_offset<2>(i / 2 % kN, i & 1);
        }
        if (!present) f.to |= kAbsent;
        return f;
    }

    // The three z taps of (y, x) tap `tap` = 3 ty + tx, channels of `chunk`.
    __device__ __forceinline__ void load_filter(const Filter& f, int slot, int chunk, int tap) const {
        const int channels = kMirror ? -p.out_channels : p.in_channels;  // from one tap to the next
        const int from = f.from + tap * channels + chunk * kChannels * (kMirror ? 27 * p.out_channels : 1);
#pragma unroll
        for (int j = 0; j * kThreads < kPieces; ++j) {
            if (j * kThreads + static_cast<int>(threadIdx.x) < kPieces) {
                cp_async16(stage(slot) + (f.to & ~kAbsent) + j * kSkip * kTap, p.w + from + j * kSkip * 9 * channels,
                           (f.to & kAbsent) == 0);
            }
        }
    }

    // One (y, x) tap: all three z taps, 16 channels.
    __device__ __forceinline__ void multiply(float (&acc)[4][kNF][4], uint32_t a_row, uint32_t slot,
                                             const uint32_t (&b_lane)[2]) const {
        uint32_t a[6][4];
#pragma unroll
        for (int plane = 0; plane < 3; ++plane) ldmatrix_x4(a[plane], a_row + plane * kPlane);
#pragma unroll
        for (int tz = 0; tz < 3; ++tz) {
            ldmatrix_x4(a[tz + 3], a_row + (tz + 3) * kPlane);
            uint32_t b[kNF][2];
#pragma unroll
            for (int n = 0; n < kNF; n += 2) {
                const uint32_t at = kMirror ? b_lane[n / 2] : b_lane[0] + n * 8 * 32;
                load_b_pair(b[n], b[n + 1], slot + at + tz * kTap, kMirror);
            }
            mma_bf16<4, kNF>(acc, fragments<4>(a, tz), b);
        }
    }

    __device__ __forceinline__ void run() const {
        const LaneTile lane = lane_tile();
        const int warp = warp_id(), wn = warp % kWN, wy = warp / kWN % kWY, wz = warp / (kWN * kWY);
        uint32_t a_lane[3], b_lane[2];
#pragma unroll
        for (int tx = 0; tx < 3; ++tx) {
            const int bx = lane.row + tx, voxel = (wz * 4 * kBoxY + wy * 2 + lane.low) * kBoxX + bx;
            a_lane[tx] = voxel * 32 + ((lane.high ^ swizzle<2>(bx)) << 4);
        }
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
            b_lane[pair] =
                kMirror ? chunk_offset<kN / 8>(lane.low * 8 + lane.row, wn * kNF + pair % (kNF / 2) * 2 + lane.high)
                        : chunk_offset<2>(wn * kNF * 8 + lane.high * 8 + lane.row, lane.low);
        }
        float acc[4][kNF][4] = {};
        const int chunks = p.in_channels / kChannels;
#pragma unroll
        for (int part = 0; part < kParts; ++part) load_box(0, part);
        const Filter f = filter();
        load_filter(f, 0, 0, 0);
        cp_async_commit();
        load_filter(f, 1, 0, 1);
        cp_async_commit();
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk) {
#pragma unroll 1
            for (int ty = 0; ty < 3; ++ty) {
                const uint32_t a_row = box(chunk) + ty * (kBoxX * 32);
#pragma unroll
                for (int tx = 0; tx < 3; ++tx) {
                    cp_async_wait<kStages - 2>();
                    __syncthreads();
                    const int tap = ty * 3 + tx, next = tap + kStages - 1;
                    if (next < 9) {
                        load_filter(f, (tx + 2) % kStages, chunk, next);
                    } else if (chunk + 1 < chunks) {
                        load_filter(f, (tx + 2) % kStages, chunk + 1, next - 9);
                    }
                    if (chunk + 1 < chunks && tap < kParts) load_box(chunk + 1, tap);
                    cp_async_commit();
                    multiply(acc, a_row + a_lane[tx], stage(tx), b_lane);
                }
            }
        }
        cp_async_wait<0>();
        __syncthreads();
        store(acc);
    }

    __device__ __forceinline__ void store(const float (&acc)[4][kNF][4]) const {
        const int warp = thread_anew() / kWarp, wn = warp % kWN, wy = warp / kWN % kWY, wz = warp / (kWN * kWY);
        const int first = first_channel() + wn * kNF * 8;
        auto piece = [&](int r, int n) -> bf16* {
            const int z = place[0] + wz * 4 + r / 16, y = place[1] + wy * 2 + r / 8 % 2, x = place[2] + r % 8;
            if (z >= p.depth || y >= p.height || x >= p.width || first + n * 8 >= p.out_channels) return nullptr;
            const size_t at = (static_cast<size_t>(place[3] + z) * p.height + y) * p.width + x;
            return p.y + at * p.out_channels + first + n * 8;
        };
        float shift[kNF][2];
        load_shift<kNF>(shift, p.bias == nullptr ? nullptr : p.bias + first, p.out_channels - first);
        float rows = 0.0f;
        const float2 part =
            store_tile_for_norm<kMirror, 4, kNF>(p.norm, acc, shared + warp * (4 * kNF * 256), shift, p.add != 0, piece,
                                                 p.y, static_cast<int>(blockIdx.z), first, p.out_channels, rows);
        if (p.norm.partial == nullptr) return;
        const int lane = thread_anew() % kWarp, channel = lane % kNF * 8 + folded<kNF, 8>();
        put_part<kWarps, kWN, kNF * 8, !kMirror>(p.norm, shared + kNormPlace, part, rows, lane < kNF * 8, channel,
                                                 static_cast<long long>(blockIdx.z) * gridDim.x + blockIdx.x,
                                                 first_channel(), p.out_channels);
    }
};
