// conv3d/igemm_wgrad.cuh: filter gradient for any filter, stride and padding, as a GEMM over voxels:
//   dw[k, j] = sum over output voxels v of dy[v, k] x[v's input at tap t, c],  column j = t C + c
// Block tile 64 k x 64 columns (a column tile may span taps), 32 voxels a step; the voxels are cut into gridDim.z
// parts, each with f32 sums of its own in `part`, added in order by conv3d_sum_splits.
#pragma once

#include "igemm.cuh"

struct Conv3dIgemmWgradParams {
    const bf16* x;   // [N, source, x_stride], channels 0 to in_channels
    const bf16* dy;  // [N, out, out_channels]
    float* part;     // [gridDim.z, out_channels, taps, in_channels]
    int batch, source[3], out[3], filter[3], stride[3], padding[3];
    int in_channels, out_channels;
    int steps;  // of 32 voxels, per split
    int x_stride;
};

template <bool kAligned> struct IgemmWgrad {
    static constexpr int kThreads = 128, kM = 64, kN = 64, kK = 32, kStages = 3;
    static constexpr int kA = kM * kK * 2, kStage = 2 * kA, kShared = kStages * kStage;
    static constexpr int kRows = kK * 8 / kThreads;  // pieces of each operand a thread copies a step: rows 16 apart

    const Conv3dIgemmWgradParams& p;
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

    // What a column of the product stands for: a tap, as an offset to the voxel's first input, and a channel.
    struct Column {
        int z, y, x, channel;
        bool present;
    };

    __device__ __forceinline__ Column column(int j) const {
        const int tap = j / p.in_channels, line = tap / p.filter[2];
        return {line / p.filter[1] - p.padding[0], line % p.filter[1] - p.padding[1], tap % p.filter[2] - p.padding[2],
                j % p.in_channels, tap < p.filter[0] * p.filter[1] * p.filter[2]};
    }

    // Address of the column's element at a voxel; of some element if it lies in the padding.
    __device__ __forceinline__ const bf16* source(const Voxel& at, const Column& of, bool& inside) const {
        const int z = at.z * p.stride[0] + of.z, y = at.y * p.stride[1] + of.y, x = at.x * p.stride[2] + of.x;
        inside = of.present && at.item < p.batch && static_cast<unsigned>(z) < static_cast<unsigned>(p.source[0]) &&
                 static_cast<unsigned>(y) < static_cast<unsigned>(p.source[1]) &&
                 static_cast<unsigned>(x) < static_cast<unsigned>(p.source[2]);
        const int voxel = inside ? ((at.item * p.source[0] + z) * p.source[1] + y) * p.source[2] + x : 0;
        return p.x + static_cast<size_t>(voxel) * p.x_stride + of.channel;
    }

    // Eight columns from j on, at one voxel.
    __device__ __forceinline__ uint4 igemm_columns(const Voxel& at, int j) const {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            bool inside;
            const bf16* from = source(at, column(j + i), inside);
            v[i] = inside ? to_float(global_load(from)) : 0.0f;
        }
        return pack_bf16x8(v);
    }

    __device__ __forceinline__ int first_column() const {
        return static_cast<int>(blockIdx.y) * kN + static_cast<int>(threadIdx.x) % 8 * 8;
    }

    __device__ __forceinline__ void load(int slot, const Voxel (&at)[kRows], const Column& of) const {
        const int piece = static_cast<int>(threadIdx.x) % 8, first = static_cast<int>(threadIdx.x) / 8;
        const int k = static_cast<int>(blockIdx.x) * kM + piece * 8;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            const int r = first + i * 16, to = slot * kStage + chunk_offset<8>(r, piece);
            const Voxel& v = at[i];
            const int voxel = ((v.item * p.out[0] + v.z) * p.out[1] + v.y) * p.out[2] + v.x;
            const int present = v.item < p.batch ? p.out_channels - k : 0;
            const bf16* from = p.dy + (present > 0 ? static_cast<size_t>(voxel) * p.out_channels + k : 0);
            copy_piece<kAligned>(shared, to, from, present);
            if (kAligned) {
                bool inside;
                const bf16* x = source(v, of, inside);
                cp_async16(smem_u32(shared) + to + kA, x, inside);
            } else {
                *reinterpret_cast<uint4*>(shared + to + kA) = igemm_columns(v, first_column());
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
            for (int n = 0; n < 4; n += 2)
                load_b_pair(b[n], b[n + 1], stage + kA + (b_lane ^ (n * 16)) + k * 16 * 128, true);
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
        const Column of = column(first_column());
        float acc[2][4][4] = {};
        auto fill = [&](int slot) {
            load(slot, at, of);
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
