// conv3d_gather_wgrad.cuh: filter gradient for any filter, stride and padding, as a GEMM over voxels:
//   dw[k, j] = sum over output voxels v of dy[v, k] x[v's input at tap t, c],  column j = t C + c
// Block tile 64 k x 64 columns (a column tile may span taps), 32 voxels a step; the voxels are cut into gridDim.z
// parts, each with f32 sums of its own in `part`, added in order by conv3d_sum_splits.
#pragma once

#include "conv3d_gather.cuh"

struct Conv3dGatherWgradParams {
    const bf16* x;   // [N, source, in_channels]
    const bf16* dy;  // [N, out, out_channels]
    float* part;     // [gridDim.z, out_channels, taps, in_channels]
    int batch, source[3], out[3], filter[3], stride[3], padding[3];
    int in_channels, out_channels;
    int steps;  // of 32 voxels, per split
    int unused;
};

template <bool kAligned> struct GatherWgrad {
    static constexpr int kThreads = 128, kM = 64, kN = 64, kK = 32, kStages = 3;
    static constexpr int kA = kM * kK * 2, kStage = 2 * kA, kShared = kStages * kStage;
    static constexpr int kRows = kK * 8 / kThreads;  // pieces of each operand a thread copies a step: rows 16 apart

    const Conv3dGatherWgradParams& p;
    unsigned char* const shared;

    // Output voxel a thread copies from next, kept as digits so that a step costs additions and not divisions.
    struct Voxel {
        int item, z, y, x;
    };

    __device__ __forceinline__ Voxel digits(int v) const {
        Voxel at;
        at.x = v % p.out[2];
        v /= p.out[2];
        at.y = v % p.out[1];
        v /= p.out[1];
        at.z = v % p.out[0];
        at.item = v / p.out[0];
        return at;
    }

    __device__ __forceinline__ void advance(Voxel& at, const Voxel& by) const {
        at.x += by.x;
        int carry = at.x >= p.out[2] ? 1 : 0;
        at.x -= carry ? p.out[2] : 0;
        at.y += by.y + carry;
        carry = at.y >= p.out[1] ? 1 : 0;
        at.y -= carry ? p.out[1] : 0;
        at.z += by.z + carry;
        carry = at.z >= p.out[0] ? 1 : 0;
        at.z -= carry ? p.out[0] : 0;
        at.item += by.item + carry;
    }

    // Eight columns from j on: the taps and channels they stand for, at one voxel.
    __device__ __forceinline__ uint4 gather_columns(const Voxel& at, int j) const {
        const int columns = p.filter[0] * p.filter[1] * p.filter[2] * p.in_channels;
        float v[8];
        int tap = j / p.in_channels, c = j % p.in_channels;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            bool inside;
            const size_t from = source(at, tap, inside);
            const bool present = inside && j + i < columns && at.item < p.batch;
            v[i] = present ? to_float(global_load(p.x + from + c)) : 0.0f;
            if (++c == p.in_channels) {
                c = 0;
                ++tap;
            }
        }
        return pack_bf16x8(v);
    }

    // Offset of channel 0 of the voxel's input at a tap.
    __device__ __forceinline__ size_t source(const Voxel& at, int tap, bool& inside) const {
        const int tx = tap % p.filter[2], ty = tap / p.filter[2] % p.filter[1], tz = tap / (p.filter[2] * p.filter[1]);
        const int z = at.z * p.stride[0] + tz - p.padding[0], y = at.y * p.stride[1] + ty - p.padding[1];
        const int x = at.x * p.stride[2] + tx - p.padding[2];
        inside = static_cast<unsigned>(z) < static_cast<unsigned>(p.source[0]) &&
                 static_cast<unsigned>(y) < static_cast<unsigned>(p.source[1]) &&
                 static_cast<unsigned>(x) < static_cast<unsigned>(p.source[2]);
        return (static_cast<size_t>((at.item * p.source[0] + z) * p.source[1] + y) * p.source[2] + x) * p.in_channels;
    }

    __device__ __forceinline__ void load(int slot, const Voxel (&at)[kRows]) const {
        const int column = static_cast<int>(threadIdx.x) % 8, first = static_cast<int>(threadIdx.x) / 8;
        const int k = static_cast<int>(blockIdx.x) * kM + column * 8, j = static_cast<int>(blockIdx.y) * kN + column * 8;
        const int columns = p.filter[0] * p.filter[1] * p.filter[2] * p.in_channels;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            const int r = first + i * 16, to = slot * kStage + chunk_offset<8>(r, column);
            const Voxel& v = at[i];
            const size_t voxel = static_cast<size_t>((v.item * p.out[0] + v.z) * p.out[1] + v.y) * p.out[2] + v.x;
            const int present = v.item < p.batch ? p.out_channels - k : 0;
            copy_piece<kAligned>(shared, to, p.dy + (present > 0 ? voxel * p.out_channels + k : 0), present);
            if (kAligned) {
                bool inside;
                const size_t from = source(v, j / p.in_channels, inside) + j % p.in_channels;
                const bool valid = inside && v.item < p.batch && j < columns;
                cp_async16(smem_u32(shared) + to + kA, p.x + (valid ? from : 0), valid);
            } else {
                *reinterpret_cast<uint4*>(shared + to + kA) = gather_columns(v, j);
            }
        }
    }

    __device__ __forceinline__ void multiply(float (&acc)[2][4][4], uint32_t stage, uint32_t a_lane,
                                             uint32_t b_lane) const {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            uint32_t a[2][4], b[4][2];
#pragma unroll
            for (int m = 0; m < 2; ++m) ldmatrix_x4_trans(a[m], stage + (a_lane ^ (m * 32)) + k * 16 * 128);
#pragma unroll
            for (int n = 0; n < 4; n += 2) load_b_pair(b[n], b[n + 1], stage + kA + (b_lane ^ (n * 16)) + k * 16 * 128, true);
            mma_bf16<2, 4>(acc, a, b);
        }
    }

    __device__ __forceinline__ void run() const {
        const LaneTile lane = lane_tile();
        const int warp = warp_id(), wn = warp % 2, wm = warp / 2;
        const uint32_t a_lane = chunk_offset<8>(lane.high * 8 + lane.row, wm * 4 + lane.low);
        const uint32_t b_lane = chunk_offset<8>(lane.low * 8 + lane.row, wn * 4 + lane.high);
        const int begin = static_cast<int>(blockIdx.z) * p.steps * kK;
        Voxel at[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) at[i] = digits(begin + static_cast<int>(threadIdx.x) / 8 + i * 16);
        const Voxel by = digits(kK);
        float acc[2][4][4] = {};
        auto fill = [&](int slot) {
            load(slot, at);
#pragma unroll
            for (int i = 0; i < kRows; ++i) advance(at[i], by);
        };
#pragma unroll
        for (int i = 0; i < kStages - 1; ++i) {
            if (i < p.steps) fill(i);
            cp_async_commit();
        }
        int slot = 0;
        for (int i = 0; i < p.steps; ++i) {
            cp_async_wait<kStages - 2>();
            __syncthreads();
            if (i + kStages - 1 < p.steps) fill(slot == 0 ? kStages - 1 : slot - 1);
            cp_async_commit();
            multiply(acc, smem_u32(shared) + slot * kStage, a_lane, b_lane);
            slot = slot == kStages - 1 ? 0 : slot + 1;
        }
        cp_async_wait<0>();
        store(acc, static_cast<int>(blockIdx.x) * kM + wm * 32, static_cast<int>(blockIdx.y) * kN + wn * 32);
    }

    __device__ __forceinline__ void store(const float (&acc)[2][4][4], int k0, int j0) const {
        const int group = lane_id() >> 2, quad = lane_id() & 3;
        const int columns = p.filter[0] * p.filter[1] * p.filter[2] * p.in_channels;
#pragma unroll
        for (int half = 0; half < 4; ++half) {
            const int k = k0 + half * 8 + group;
            if (k >= p.out_channels) continue;
            float* row = p.part + (static_cast<size_t>(blockIdx.z) * p.out_channels + k) * columns;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int j = j0 + i / 2 * 8 + quad * 2 + i % 2;
                if (j < columns) global_store(row + j, acc[half / 2][i / 2][half % 2 * 2 + i % 2]);
            }
        }
    }
};
