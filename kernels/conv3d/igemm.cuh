// conv3d/igemm.cuh: convolution as an implicit GEMM for any filter, stride and padding: rows are output voxels,
// columns output channels, and the reduction index runs over the taps, 32 input channels of a tap at a time. Each tap
// reads its input rows anew.
//
// The input gradient is the same product over the filter read transposed. With stride s only every s-th tap meets a
// given voxel, so the voxels fall into s_z s_y s_x classes, each a dense product over its own taps: a grid dimension.
// A transposed convolution is this with the roles of input and output exchanged (conv_transpose3d.cu). Input and output
// may be channels of a wider tensor (x_stride, y_stride): a transposed convolution writes and reads its part of a
// concatenation.
//
// Small volumes: the taps are cut into `splits` parts, each block writes f32 sums of its part to `part`, and
// conv3d_sum_rows adds them in order.
//
// Where a GELU follows, the forward pass writes it, too, from the rounded output (conv3d_sum_rows does after a split).
#pragma once

#include "epilogue.cuh"
#include "../gelu.cuh"

struct Conv3dIgemmParams {
    const bf16* x;      // [N, source, x_stride], channels 0 to in_channels
    const bf16* w;      // forward [out_channels, taps, in_channels]; input gradient [in_channels, taps, out_channels]
    const float* bias;  // [out_channels] or null; not with splits
    bf16* y;            // [N, out, y_stride], channels y_offset to y_offset + out_channels
    float* part;        // [splits, N * out voxels, out_channels] where splits > 1
    bf16* gelu;         // [N, out, out_channels], GELU of y, or null; forward, not with splits
    int batch, source[3], out[3], filter[3], stride[3], padding[3];
    int in_channels, out_channels, x_stride, y_stride, y_offset;
    int splits, add, unused;
    Conv3dNorm norm;  // not with splits; blocks then have rows of one item each
};

// How rows and taps of one axis map to input and output: row j reads input j * mul + offset + direction * tap and
// writes output j * out_mul + out_offset; tap i is filter tap first + i * step.
struct IgemmAxis {
    int count, mul, offset, taps, first, step, direction, out_mul, out_offset;
};

__device__ __forceinline__ IgemmAxis igemm_axis(int source, int out, int filter, int stride, int padding, bool mirror,
                                                int residue) {
    if (!mirror) return {out, stride, -padding, filter, 0, 1, 1, 1, 0};
    // Voxel i meets tap t where (i + padding - t) is a multiple of the stride: i + padding and t have one residue.
    const int begin = (residue - padding % stride + stride) % stride;
    IgemmAxis a;
    a.count = begin < out ? ceil_div(out - begin, stride) : 0;
    a.mul = 1;
    a.offset = (begin + padding - residue) / stride;
    a.taps = residue < filter ? ceil_div(filter - residue, stride) : 0;
    a.first = residue;
    a.step = stride;
    a.direction = -1;
    a.out_mul = stride;
    a.out_offset = begin;
    return a;
}

// Eight channels, of which the first `present` exist, without any alignment.
__device__ __forceinline__ uint4 load_ragged(const bf16* p, int present) {
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = i < present ? to_float(global_load(p + i)) : 0.0f;
    return pack_bf16x8(v);
}

// A 16-byte piece of a tile: its first `present` channels (all or none if kAligned), zeros for the rest.
template <bool kAligned>
__device__ __forceinline__ void copy_piece(unsigned char* shared, int to, const bf16* from, int present) {
    if (kAligned) {
        cp_async16(smem_u32(shared) + to, from, present > 0);
    } else {
        *reinterpret_cast<uint4*>(shared + to) = load_ragged(from, present);
    }
}

template <int kWM, int kWN, bool kMirror, bool kAligned> struct Igemm {
    static constexpr int kThreads = kWarp * kWM * kWN, kM = 64 * kWM, kN = 32 * kWN, kK = 32, kStages = 3;
    static constexpr int kA = kM * kK * 2, kB = kN * kK * 2, kStage = kA + kB;
    static constexpr int kTable = kStages * kStage, kShared = kTable + kM * 20 + 3 * 36;
    static_assert(kM * 4 % kThreads == 0 && kN * 4 % kThreads == 0, "pieces divide evenly");
    static_assert(kWM * kWN * (4096 + 8 * 32 + 4) <= kTable, "the epilogue reuses the stages");

    const Conv3dIgemmParams& p;
    unsigned char* const shared;
    int4* const rows;  // input position of the row at tap 0: z, y, x, and the item's first plane
    int* const outs;   // output voxel of the row, or -1
    IgemmAxis* const axes;

    __device__ __forceinline__ Igemm(const Conv3dIgemmParams& params, unsigned char* memory)
        : p(params),
          shared(memory),
          rows(reinterpret_cast<int4*>(memory + kTable)),
          outs(reinterpret_cast<int*>(memory + kTable + kM * 16)),
          axes(reinterpret_cast<IgemmAxis*>(memory + kTable + kM * 20)) {}

    struct Step {
        int chunk, x, y, z;  // channels 32 chunk on; taps of the class
    };

    __device__ __forceinline__ int chunks() const { return ceil_div(p.in_channels, kK); }

    // Blocks along the rows, of all items or of each; the block's item, of all the first.
    __device__ __forceinline__ int tiles() const {
        return static_cast<int>(gridDim.x) / (p.norm.partial == nullptr ? 1 : p.batch);
    }
    __device__ __forceinline__ int item() const { return static_cast<int>(blockIdx.x) / tiles(); }

    // Which class, its axes, and the rows of this block.
    __device__ __forceinline__ void prepare() const {
        if (threadIdx.x < 3) {
            int residue = static_cast<int>(blockIdx.z) / p.splits;
            const int a = static_cast<int>(threadIdx.x);
            for (int axis = 2; axis > a; --axis) residue /= p.stride[axis];
            axes[a] = igemm_axis(p.source[a], p.out[a], p.filter[a], p.stride[a], p.padding[a], kMirror,
                                 kMirror ? residue % p.stride[a] : 0);
        }
        __syncthreads();
        for (int r = static_cast<int>(threadIdx.x); r < kM; r += kThreads) {
            const IgemmAxis z = axes[0], y = axes[1], x = axes[2];
            const int volume = z.count * y.count * x.count, tile = static_cast<int>(blockIdx.x) % tiles();
            int row = tile * kM + r;
            const bool inside = row < (p.norm.partial == nullptr ? p.batch * volume : volume);
            row += item() * volume;
            if (!inside) {
                rows[r] = make_int4(-(1 << 30), 0, 0, 0);
                outs[r] = -1;
                continue;
            }
            const int jx = row % x.count;
            row /= x.count;
            const int jy = row % y.count;
            row /= y.count;
            const int jz = row % z.count, item = row / z.count;
            rows[r] =
                make_int4(jz * z.mul + z.offset, jy * y.mul + y.offset, jx * x.mul + x.offset, item * p.source[0]);
            outs[r] = ((item * p.out[0] + jz * z.out_mul + z.out_offset) * p.out[1] + jy * y.out_mul + y.out_offset) *
                          p.out[2] +
                      jx * x.out_mul + x.out_offset;
        }
        __syncthreads();
    }

    __device__ __forceinline__ void load(int slot, const Step& at) const {
        const int base = slot * kStage, c = at.chunk * kK;
        const int direction = kMirror ? -1 : 1;
        const int tap =
            ((axes[0].first + at.z * axes[0].step) * p.filter[1] + axes[1].first + at.y * axes[1].step) * p.filter[2] +
            axes[2].first + at.x * axes[2].step;
        const int taps = p.filter[0] * p.filter[1] * p.filter[2];
#pragma unroll
        for (int i = 0; i < kM * 4 / kThreads; ++i) {
            const int r = (i * kThreads + static_cast<int>(threadIdx.x)) / 4,
                      column = static_cast<int>(threadIdx.x) % 4;
            const int4 row = rows[r];
            const int z = row.x + direction * at.z, y = row.y + direction * at.y, x = row.z + direction * at.x;
            const bool inside = static_cast<unsigned>(z) < static_cast<unsigned>(p.source[0]) &&
                                static_cast<unsigned>(y) < static_cast<unsigned>(p.source[1]) &&
                                static_cast<unsigned>(x) < static_cast<unsigned>(p.source[2]);
            const int present = inside ? p.in_channels - c - column * 8 : 0;
            const int voxel = ((row.w + z) * p.source[1] + y) * p.source[2] + x;
            const bf16* from = p.x + (present > 0 ? static_cast<size_t>(voxel) * p.x_stride + c + column * 8 : 0);
            copy_piece<kAligned>(shared, base + chunk_offset<4>(r, column), from, present);
        }
        const int n0 = static_cast<int>(blockIdx.y) * kN;
#pragma unroll
        for (int piece = 0; piece < kN * 4 / kThreads; ++piece) {
            const int i = piece * kThreads + static_cast<int>(threadIdx.x);
            if (kMirror) {  // rows of the summed channel
                constexpr int kRow = kN / 8;
                const int k = i / kRow, column = i % kRow, n = n0 + column * 8;
                const int present = c + k < p.in_channels ? p.out_channels - n : 0;
                const int at_k = ((c + k) * taps + tap) * p.out_channels + n;
                copy_piece<kAligned>(shared, base + kA + chunk_offset<kRow>(k, column), p.w + (present > 0 ? at_k : 0),
                                     present);
            } else {  // rows of the output channel
                const int n = i / 4, column = i % 4, ck = c + column * 8;
                const int present = n0 + n < p.out_channels ? p.in_channels - ck : 0;
                const int at_n = ((n0 + n) * taps + tap) * p.in_channels + ck;
                copy_piece<kAligned>(shared, base + kA + chunk_offset<4>(n, column), p.w + (present > 0 ? at_n : 0),
                                     present);
            }
        }
    }

    __device__ __forceinline__ void advance(Step& at) const {
        if (++at.chunk < chunks()) return;
        at.chunk = 0;
        if (++at.x < axes[2].taps) return;
        at.x = 0;
        if (++at.y < axes[1].taps) return;
        at.y = 0;
        ++at.z;
    }

    __device__ __forceinline__ void multiply(float (&acc)[4][4][4], uint32_t stage, uint32_t a_lane,
                                             uint32_t b_lane) const {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            uint32_t a[4][4], b[4][2];
#pragma unroll
            for (int m = 0; m < 4; ++m) ldmatrix_x4(a[m], stage + (a_lane ^ (k * 32)) + m * 16 * 64);
#pragma unroll
            for (int n = 0; n < 4; n += 2) {
                // 16 rows of k further on, or 32 bytes along a row; two fragments along a row, or 16 rows further on.
                const uint32_t at =
                    kMirror ? (b_lane ^ (n * 16)) + k * 16 * (kN * 2) : (b_lane ^ (k * 32)) + n * 8 * 64;
                load_b_pair(b[n], b[n + 1], stage + kA + at, kMirror);
            }
            mma_bf16<4, 4>(acc, a, b);
        }
    }

    __device__ __forceinline__ void run() const {
        prepare();
        const LaneTile lane = lane_tile();
        const int warp = warp_id(), wn = warp % kWN, wm = warp / kWN;
        const uint32_t a_lane = chunk_offset<4>(wm * 64 + lane.low * 8 + lane.row, lane.high);
        const uint32_t b_lane = kMirror ? chunk_offset<kN / 8>(lane.low * 8 + lane.row, wn * 4 + lane.high)
                                        : chunk_offset<4>(wn * 32 + lane.high * 8 + lane.row, lane.low);
        const int all = axes[0].taps * axes[1].taps * axes[2].taps * chunks(), each = ceil_div(all, p.splits);
        const int begin = static_cast<int>(blockIdx.z) % p.splits * each;
        const int steps = begin < all ? (all - begin < each ? all - begin : each) : 0;
        Step at = {0, 0, 0, 0};
        if (steps > 0) {
            int tap = begin / chunks();
            at.chunk = begin % chunks();
            at.x = tap % axes[2].taps;
            tap /= axes[2].taps;
            at.y = tap % axes[1].taps;
            at.z = tap / axes[1].taps;
        }
        float acc[4][4][4] = {};
#pragma unroll
        for (int i = 0; i < kStages - 1; ++i) {
            if (i < steps) {
                load(i, at);
                advance(at);
            }
            cp_async_commit();
        }
        int slot = 0;
        for (int i = 0; i < steps; ++i) {
            cp_async_wait<kStages - 2>();
            __syncthreads();
            if (i + kStages - 1 < steps) {
                load(slot == 0 ? kStages - 1 : slot - 1, at);
                advance(at);
            }
            cp_async_commit();
            multiply(acc, smem_u32(shared) + slot * kStage, a_lane, b_lane);
            slot = slot == kStages - 1 ? 0 : slot + 1;
        }
        cp_async_wait<0>();
        __syncthreads();
        store(acc, wm * 64, static_cast<int>(blockIdx.y) * kN + wn * 32, shared + warp * 4096);
    }

    __device__ __forceinline__ void store(const float (&acc)[4][4][4], int first_row, int n0,
                                          unsigned char* stage) const {
        if (p.splits == 1 && kAligned) {
            auto piece = [&](int r, int n) -> bf16* {
                const int out = outs[first_row + r];
                if (out < 0 || n0 + n * 8 >= p.out_channels) return nullptr;
                return p.y + static_cast<size_t>(out) * p.y_stride + p.y_offset + n0 + n * 8;
            };
            float shift[4][2];
            load_shift<4>(shift, p.bias == nullptr ? nullptr : p.bias + n0, p.out_channels - n0);
            float rows = 0.0f;
            const float2 part = store_tile_for_norm<kMirror, 4, 4>(p.norm, acc, stage, shift, p.add != 0, piece, p.y,
                                                                   item(), n0, p.out_channels, rows);
            if (!kMirror && p.gelu != nullptr) store_gelu(first_row, n0, stage);
            if (p.norm.partial == nullptr) return;
            const int at = item() * tiles() * static_cast<int>(gridDim.z) + static_cast<int>(blockIdx.z) * tiles() +
                           static_cast<int>(blockIdx.x) % tiles();
            put_part<kWM * kWN, kWN, 32, !kMirror>(p.norm, shared + kWM * kWN * 4096, part, rows, true,
                                                   lane_id() % 4 * 8 + folded<4, 8>(), at,
                                                   static_cast<int>(blockIdx.y) * kN, p.out_channels);
            return;
        }
        const int group = lane_id() >> 2, quad = lane_id() & 3;
        const int voxels = p.batch * p.out[0] * p.out[1] * p.out[2];
        const int split = static_cast<int>(blockIdx.z) % p.splits;
#pragma unroll
        for (int half = 0; half < 8; ++half) {
            const int out = outs[first_row + half * 8 + group];
            if (out < 0) continue;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int n = n0 + i / 2 * 8 + quad * 2 + i % 2;
                float v = acc[half / 2][i / 2][half % 2 * 2 + i % 2];
                if (n >= p.out_channels) continue;
                if (p.splits > 1) {
                    const size_t at = static_cast<size_t>(split) * voxels + out;
                    global_store(p.part + at * p.out_channels + n, v);
                } else {
                    bf16* to = p.y + static_cast<size_t>(out) * p.y_stride + p.y_offset + n;
                    if (p.bias != nullptr) v += global_load(p.bias + n);
                    if (p.add != 0) v += to_float(global_load(to));
                    const bf16 rounded = to_bf16(v);
                    global_store(to, rounded);
                    if (!kMirror) *staged(stage, half * 8 + group, n - n0) = rounded;
                }
            }
        }
        __syncwarp();
        if (!kMirror && p.gelu != nullptr) store_gelu(first_row, n0, stage);
    }

    // Where store_tile leaves channel n of row r.
    __device__ __forceinline__ bf16* staged(unsigned char* stage, int r, int n) const {
        return reinterpret_cast<bf16*>(stage + chunk_offset<4>(r, n / 8)) + n % 8;
    }

    // GELU of the rounded output that lies in `stage`.
    __device__ __forceinline__ void store_gelu(int first_row, int n0, unsigned char* stage) const {
        constexpr int kW = kAligned ? 8 : 1;
#pragma unroll 1
        for (int i = lane_id(); i < 64 * 32 / kW; i += kWarp) {
            const int out = outs[first_row + i * kW / 32], n = i * kW % 32;
            if (out < 0 || n0 + n >= p.out_channels) continue;
            bf16* const to = p.gelu + static_cast<size_t>(out) * p.out_channels + n0 + n;
            const bf16* const from = staged(stage, i * kW / 32, n);
            if (kAligned) {
                global_store(reinterpret_cast<uint4*>(to), gelu_bf16x8(*reinterpret_cast<const uint4*>(from)));
            } else {
                global_store(to, gelu(*from));
            }
        }
        __syncwarp();
    }
};
