// conv_transpose3d.cu: transposed 3D convolution whose stride is its filter (each input voxel makes a block of output
// voxels of its own), channels multiples of 8:
//   y[n, z T + t, y R + r, x S + s, k] = b[k] + sum over c of x[n, z, y, x, c] w[c, t, r, s, k]
// One product [voxels, C] x [C, taps K]: a block keeps 64 kWM input voxels with all their channels in shared memory,
// streams the filter past them, and scatters each column tile to its taps. Input read once per group of columns,
// output written once.
// Its input gradient and filter gradient are passes of the convolution it is the adjoint of, conv3d_igemm_*; so is
// the forward for other channel counts.
#include "conv3d/tile.cuh"

struct ConvTranspose3dParams {
    const bf16* x;      // [N, D, H, W, C]
    const bf16* w;      // [C, T, R, S, K]
    const float* bias;  // [K] or null
    bf16* y;            // [N, D T, H R, W S, y_stride], channels y_offset to y_offset + K
    int batch, extent[3], filter[3], in_channels, out_channels, y_stride, y_offset;
    int column_tiles;  // of 64 columns, per block
};

template <int kWM, int kMaxChannels> struct Upsample {
    static constexpr int kThreads = kWarp * kWM * 2, kM = 64 * kWM, kN = 64, kK = 32, kStages = 3;
    static constexpr int kA = kM * kK * 2, kB = kN * kK * 2;  // bytes of 32 channels
    static constexpr int kInput = kMaxChannels / kK * kA, kStage = kInput + kStages * kB;
    static constexpr int kTable = kStage + kWM * 2 * 4096, kShared = kTable + kM * 4;
    static_assert(kShared <= 99 * 1024, "what every card has");

    const ConvTranspose3dParams& p;
    unsigned char* const shared;
    int* const outs;  // first output voxel of each row, or -1

    __device__ __forceinline__ Upsample(const ConvTranspose3dParams& params, unsigned char* memory)
        : p(params), shared(memory), outs(reinterpret_cast<int*>(memory + kTable)) {}

    __device__ __forceinline__ int columns() const { return p.filter[0] * p.filter[1] * p.filter[2] * p.out_channels; }

    __device__ __forceinline__ void load_input() const {
        const int first = static_cast<int>(blockIdx.x) * kM, voxels = p.batch * p.extent[0] * p.extent[1] * p.extent[2];
        const int chunks = ceil_div(p.in_channels, kK);
        for (int i = static_cast<int>(threadIdx.x); i < kM * 4 * chunks; i += kThreads) {
            const int column = i % (4 * chunks), r = i / (4 * chunks), c = column * 8;
            const bool inside = first + r < voxels && c < p.in_channels;
            cp_async16(smem_u32(shared) + column / 4 * kA + chunk_offset<4>(r, column % 4),
                       p.x + (inside ? static_cast<size_t>(first + r) * p.in_channels + c : 0), inside);
        }
        for (int r = static_cast<int>(threadIdx.x); r < kM; r += kThreads) {
            int v = first + r;
            const int x = v % p.extent[2];
            v /= p.extent[2];
            const int y = v % p.extent[1];
            const int plane = v / p.extent[1];  // item * depth + z
            const int line = plane * p.filter[0] * p.extent[1] * p.filter[1] + y * p.filter[1];
            outs[r] = first + r < voxels ? line * p.extent[2] * p.filter[2] + x * p.filter[2] : -1;
        }
    }

    // 32 channels of 64 columns.
    __device__ __forceinline__ void load_filter(int slot, int tile, int chunk) const {
        const int all = columns();
#pragma unroll
        for (int piece = 0; piece < kK * kN / 8 / kThreads; ++piece) {
            const int i = piece * kThreads + static_cast<int>(threadIdx.x);
            const int k = i / 8, c = chunk * kK + k, j = tile * kN + i % 8 * 8;
            const bool present = c < p.in_channels && j < all;
            cp_async16(smem_u32(shared) + kInput + slot * kB + chunk_offset<8>(k, i % 8),
                       p.w + (present ? static_cast<size_t>(c) * all + j : 0), present);
        }
    }

    __device__ __forceinline__ void run() const {
        const LaneTile lane = lane_tile();
        const int warp = warp_id(), wn = warp % 2, wm = warp / 2, chunks = ceil_div(p.in_channels, kK);
        const uint32_t a_lane = smem_u32(shared) + chunk_offset<4>(wm * 64 + lane.low * 8 + lane.row, lane.high);
        const uint32_t b_lane =
            smem_u32(shared) + kInput + chunk_offset<8>(lane.low * 8 + lane.row, wn * 4 + lane.high);
        const int first = static_cast<int>(blockIdx.y) * p.column_tiles, tiles = ceil_div(columns(), kN);
        const int last = first + p.column_tiles < tiles ? first + p.column_tiles : tiles;
        int tile = first, chunk = 0;  // loaded next
        auto fill = [&](int slot) {
            if (tile < last) load_filter(slot, tile, chunk);
            cp_async_commit();
            if (++chunk == chunks) {
                chunk = 0;
                ++tile;
            }
        };
        load_input();
        fill(0);
        fill(1);
        int slot = 0;
        for (int now = first; now < last; ++now) {
            float acc[4][4][4] = {};
            for (int c = 0; c < chunks; ++c) {
                cp_async_wait<kStages - 2>();
                __syncthreads();
                fill(slot == 0 ? kStages - 1 : slot - 1);
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    uint32_t a[4][4], b[4][2];
#pragma unroll
                    for (int m = 0; m < 4; ++m) ldmatrix_x4(a[m], (a_lane ^ (k * 32)) + c * kA + m * 16 * 64);
#pragma unroll
                    for (int n = 0; n < 4; n += 2) {
                        load_b_pair(b[n], b[n + 1], (b_lane ^ (n * 16)) + slot * kB + k * 16 * 128, true);
                    }
                    mma_bf16<4, 4>(acc, a, b);
                }
                slot = slot == kStages - 1 ? 0 : slot + 1;
            }
            store(acc, wm * 64, now * kN + wn * 32, shared + kStage + warp * 4096);
        }
        cp_async_wait<0>();
    }

    __device__ __forceinline__ void store(const float (&acc)[4][4][4], int first_row, int j0,
                                          unsigned char* stage) const {
        const int all = columns(), quad = lane_id() % 4;
        float shift[4][2];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const float* from = p.bias + (j0 + n * 8) % p.out_channels + quad * 2;
            const bool present = p.bias != nullptr && j0 + n * 8 < all;
            shift[n][0] = present ? global_load(from) : 0.0f;
            shift[n][1] = present ? global_load(from + 1) : 0.0f;
        }
        auto piece = [&](int r, int n) -> bf16* {
            const int out = outs[first_row + r], j = j0 + n * 8;
            if (out < 0 || j >= all) return nullptr;
            const int tap = j / p.out_channels, s = tap % p.filter[2], line = tap / p.filter[2];
            const int rows = line / p.filter[1] * p.extent[1] * p.filter[1] + line % p.filter[1];
            const size_t voxel = static_cast<size_t>(out) + rows * p.extent[2] * p.filter[2] + s;
            return p.y + voxel * p.y_stride + p.y_offset + j % p.out_channels;
        };
        store_tile<4, 4>(acc, stage, shift, false, piece);
    }
};

#define UPSAMPLE(name, wm, channels, min_blocks)                                          \
    KERNEL(name, ConvTranspose3dParams, (Upsample<wm, channels>::kThreads), min_blocks) { \
        DYNAMIC_SHARED(shared, (Upsample<wm, channels>::kShared));                        \
        Upsample<wm, channels>(p, shared).run();                                          \
    }

UPSAMPLE(conv_transpose3d_fprop_c128, 2, 128, 2)
UPSAMPLE(conv_transpose3d_fprop_c512, 1, 512, 1)
