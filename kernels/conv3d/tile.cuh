// conv3d/tile.cuh: what the convolution kernels share: swizzles, fragments of the second operand, the epilogue.
//
// Shared memory tiles are rows of kChunks chunks of 16 bytes. Chunk c of row r lies at c ^ swizzle<kChunks>(r), so
// that the eight rows of one ldmatrix matrix (consecutive r, same c) lie in eight different groups of four banks.
#pragma once

#include "../lang/common.cuh"

template <int kChunks> __device__ __forceinline__ int swizzle(int row) {
    static_assert(kChunks == 2 || kChunks == 4 || kChunks == 8, "rows of 32, 64 or 128 bytes");
    if (kChunks == 2) return (row >> 2) & 1;
    if (kChunks == 4) return (row >> 1) & 3;
    return row & 7;
}

// Byte offset of a 16-byte chunk in a tile whose rows are numbered for the swizzle as they lie in memory.
template <int kChunks> __device__ __forceinline__ int chunk_offset(int row, int chunk) {
    return row * (kChunks * 16) + ((chunk ^ swizzle<kChunks>(row)) << 4);
}

// Rows `first` to `first` + kRows - 1 of an array of fragments or sums, as mma_bf16 takes them.
template <int kRows, int kAll>
__device__ __forceinline__ const uint32_t (&fragments(const uint32_t (&a)[kAll][4], int first))
    [kRows][4] { return reinterpret_cast<const uint32_t (&)[kRows][4]>(a[first]); }

template <int kRows, int kAll, int kN>
__device__ __forceinline__ float (&sums(float (&acc)[kAll][kN][4], int first))
    [kRows][kN][4] { return reinterpret_cast<float (&)[kRows][kN][4]>(acc[first]); }

// Two neighbouring 16x8 fragments of the second operand, from rows of the column index n (k contiguous).
// `address`: of the row that this lane gives to ldmatrix, as LaneTile says.
__device__ __forceinline__ void load_b_pair(uint32_t (&b0)[2], uint32_t (&b1)[2], uint32_t address, bool transpose) {
    uint32_t r[4];
    if (transpose) {
        ldmatrix_x4_trans(r, address);
    } else {
        ldmatrix_x4(r, address);
    }
    b0[0] = r[0];
    b0[1] = r[1];
    b1[0] = r[2];
    b1[1] = r[3];
}

// Row and chunk each lane addresses for ldmatrix_x4, by how the four 8x8 matrices tile the operand:
//   fragment A (16 m x 16 k), rows are m:      low = matrix & 1 picks rows,  high = matrix >> 1 picks the k chunk
//   fragments B (16 k x 16 n), rows are k:     the same, transposed load:    low picks k rows, high the n chunk
//   fragment A from rows of k (transposed):    high picks k rows, low the m chunk
//   fragments B from rows of n:                high picks n rows, low the k chunk
struct LaneTile {
    int row;   // 0..7 within a matrix
    int low;   // matrix & 1
    int high;  // matrix >> 1
};

__device__ __forceinline__ LaneTile lane_tile() {
    const int lane = lane_id();
    return {lane & 7, (lane >> 3) & 1, lane >> 4};
}

__device__ __forceinline__ void add_bf16x2(float& lo, float& hi, const bf16* p) {
    float a, b;
    unpack_bf16(global_load(reinterpret_cast<const uint32_t*>(p)), a, b);
    lo += a;
    hi += b;
}

// Bias of the 2 kN channels a lane holds sums of; `bias` (or null) points at the tile's first of `channels` channels.
template <int kN> __device__ __forceinline__ void load_shift(float (&shift)[kN][2], const float* bias, int channels) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
        const float* from = bias + n * 8 + lane_id() % 4 * 2;
        const bool present = bias != nullptr && n * 8 < channels;
        shift[n][0] = present ? global_load(from) : 0.0f;
        shift[n][1] = present ? global_load(from + 1) : 0.0f;
    }
}

// Lays a warp's sums, kM x 16 rows of kN x 8 channels, as bf16 into `stage` (kM * kN * 256 bytes of shared memory of
// this warp alone). `piece(r, n)` points at channels 8 n to 8 n + 7 of row r, or is null if they are not stored. With
// `add` the old value is added before the one rounding.
template <int kM, int kN, class Piece>
__device__ __forceinline__ void stage_tile(const float (&acc)[kM][kN][4], unsigned char* stage,
                                           const float (&shift)[kN][2], bool add, Piece piece) {
    const int lane = lane_id(), group = lane >> 2, quad = lane & 3;
#pragma unroll
    for (int half = 0; half < 2 * kM; ++half) {
        const int r = half * 8 + group;
#pragma unroll
        for (int n = 0; n < kN; ++n) {
            float lo = acc[half / 2][n][half % 2 * 2] + shift[n][0];
            float hi = acc[half / 2][n][half % 2 * 2 + 1] + shift[n][1];
            if (add) {
                const bf16* old = piece(r, n);
                if (old != nullptr) add_bf16x2(lo, hi, old + quad * 2);
            }
            *reinterpret_cast<uint32_t*>(stage + chunk_offset<kN>(r, n) + quad * 4) = pack_bf16(lo, hi);
        }
    }
    __syncwarp();
}

// From there to memory, in 16-byte pieces.
template <int kM, int kN, class Piece>
__device__ __forceinline__ void copy_tile(const unsigned char* stage, Piece piece) {
#pragma unroll
    for (int i = lane_id(); i < kM * 16 * kN; i += kWarp) {
        const int r = i / kN, n = i % kN;
        bf16* out = piece(r, n);
        if (out != nullptr) {
            const uint4 value = *reinterpret_cast<const uint4*>(stage + chunk_offset<kN>(r, n));
            global_store(reinterpret_cast<uint4*>(out), value);
        }
    }
    __syncwarp();  // the stage may be written again
}

template <int kM, int kN, class Piece>
__device__ __forceinline__ void store_tile(const float (&acc)[kM][kN][4], unsigned char* stage,
                                           const float (&shift)[kN][2], bool add, Piece piece) {
    stage_tile<kM, kN>(acc, stage, shift, add, piece);
    copy_tile<kM, kN>(stage, piece);
}
