// sub_view.cu: cutting sub-views out of dense representations, and the adjoint.
//
//   y[cut, z, y, x] = rep[image(cut), start(cut) + (z, y, x)];   drep[image, v] = sum of dy over the cuts that cover v
//
// Cut (role N + n) P + p of sample n, pair p of views i < j: the view is i for roles 0 and 2, j for roles 1 and 3, and
// the start is boxes[n, p, role], whole numbers in f32. Representations are view-major, image view N + n; the first
// `split` of them in rep0, the others in rep1. A box that leaves its view touches no memory outside of it: forward
// writes NaN, backward leaves the cut out. It does not happen: src/views/geometry.rs makes boxes that fit.
// Forward: grid cuts * `parts`, a block copies a part of one cut, 16 bytes (or one channel) at a time.
// Backward: gathers; grid images * `parts`, a thread for each 16 bytes of a representation adds the cuts that cover it
// in the order of the output. No atomics, the same bits as the order of the CPU in f32; rounded to bf16 once.
// Traffic: forward reads and writes each cut once; backward reads each cut once, writes every representation once.
#include "lang/common.cuh"

constexpr int kCutThreads = 256;
constexpr int kCutAccesses = 4;    // of one thread
constexpr int kMaxCuts = 2 * 255;  // of one view: two for each pair that it is in

// Representations of V views of N samples, and the cuts made of them.
struct CutShape {
    int views, batch, pairs;
    int d, h, w, channels;
    int size_d, size_h, size_w;
    int parts;  // blocks to a cut, or to an image
    int reserved;
};

struct CutParams {
    const float* boxes;  // [batch, pairs, 4, 3]
    const bf16* rep0;    // images below `split`
    const bf16* rep1;    // may be null if there are no others
    bf16* y;
    CutShape shape;
    int split;
    int reserved;
};

struct CutAdjointParams {
    const float* boxes;
    const bf16* dy;
    bf16* drep;  // images from `first` on
    CutShape shape;
    int first;
    int add;
};

struct Cut {
    int image;
    int z, y, x;
    bool inside;
};

// Cut `index`, role-major.
__device__ __forceinline__ Cut cut_at(const float* boxes, const CutShape& s, int index) {
    const int pair = index % s.pairs;
    const int n = index / s.pairs % s.batch;
    const int role = index / s.pairs / s.batch;
    int i = 0, before = 0;
    while (before + s.views - 1 - i <= pair) {
        before += s.views - 1 - i;
        ++i;
    }
    const int view = role % 2 == 0 ? i : i + 1 + pair - before;
    const float* corner = boxes + ((static_cast<long long>(n) * s.pairs + pair) * 4 + role) * 3;
    const float z = global_load(corner), y = global_load(corner + 1), x = global_load(corner + 2);
    // Extents are far below 2^24, so these sums are exact; NaN fails every comparison.
    const bool inside = z >= 0.0f && y >= 0.0f && x >= 0.0f && z <= static_cast<float>(s.d - s.size_d) &&
                        y <= static_cast<float>(s.h - s.size_h) && x <= static_cast<float>(s.w - s.size_w);
    if (!inside) return Cut{view * s.batch + n, 0, 0, 0, false};
    return Cut{view * s.batch + n, static_cast<int>(z), static_cast<int>(y), static_cast<int>(x), true};
}

// What is moved at once: 8 channels, or 1.
template <int kW> struct Unit;
template <> struct Unit<8> {
    using Raw = uint4;
    static __device__ __forceinline__ Raw nan() {
        return make_uint4(0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu);
    }
};
template <> struct Unit<1> {
    using Raw = unsigned short;
    static __device__ __forceinline__ Raw nan() { return 0x7fff; }
};

template <int kW> __device__ __forceinline__ void copy_cut(const CutParams& p) {
    using Raw = typename Unit<kW>::Raw;
    const CutShape& s = p.shape;
    const int index = static_cast<int>(blockIdx.x) / s.parts;
    const Cut cut = cut_at(p.boxes, s, index);
    const int groups = s.channels / kW;
    const int row = s.size_w * groups;
    const int len = s.size_d * s.size_h * row;
    const bool second = cut.image >= p.split;
    const long long image = cut.image - (second ? p.split : 0);
    const Raw* rep = reinterpret_cast<const Raw*>(second ? p.rep1 : p.rep0);
    Raw* out = reinterpret_cast<Raw*>(p.y) + static_cast<long long>(index) * len;
    const int begin =
        static_cast<int>(blockIdx.x) % s.parts * (kCutThreads * kCutAccesses) + static_cast<int>(threadIdx.x);
    Raw values[kCutAccesses];
#pragma unroll
    for (int a = 0; a < kCutAccesses; ++a) {
        const int at = begin + a * kCutThreads;
        values[a] = Unit<kW>::nan();
        if (at < len && cut.inside) {
            const int line = at / row;
            const int z = cut.z + line / s.size_h, y = cut.y + line % s.size_h;
            const long long voxel = ((image * s.d + z) * s.h + y) * s.w + cut.x;
            values[a] = global_load(rep + voxel * groups + at % row);
        }
    }
#pragma unroll
    for (int a = 0; a < kCutAccesses; ++a) {
        const int at = begin + a * kCutThreads;
        if (at < len) global_store(out + at, values[a]);
    }
}

KERNEL(sub_view_fwd_bf16, CutParams, kCutThreads, 2) {
    if (p.shape.channels % 8 == 0) {
        copy_cut<8>(p);
    } else {
        copy_cut<1>(p);
    }
}

__device__ __forceinline__ void add_channels(const bf16* p, float (&v)[8]) {
    float more[8];
    load_bf16x8(p, more);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += more[i];
}
__device__ __forceinline__ void add_channels(const bf16* p, float (&v)[1]) { v[0] += to_float(global_load(p)); }
__device__ __forceinline__ void store_channels(bf16* p, const float (&v)[8]) { store_bf16x8(p, v); }
__device__ __forceinline__ void store_channels(bf16* p, const float (&v)[1]) { global_store(p, to_bf16(v[0])); }

// Candidate `k` of view v, in the order of the output: role 0 of the pairs (v, j), role 1 of the pairs (i, v), then
// roles 2 and 3. Returns the index of the cut.
__device__ __forceinline__ int candidate(const CutShape& s, int v, int n, int k) {
    const int others = s.views - 1;
    const int above = others - v;  // pairs (v, j)
    const int half = k / others;
    k %= others;
    const bool is_first = k < above;
    const int i = is_first ? v : k - above, j = is_first ? v + 1 + k : v;
    const int pair = i * s.views - i * (i + 1) / 2 + j - i - 1;
    const int role = 2 * half + (is_first ? 0 : 1);
    return (role * s.batch + n) * s.pairs + pair;
}

template <int kW> __device__ __forceinline__ void igemm_cuts(const CutAdjointParams& p, const int4* cuts, int count) {
    const CutShape& s = p.shape;
    const int groups = s.channels / kW;
    const long long len = static_cast<long long>(s.d) * s.h * s.w * groups;
    const int cut_len = s.size_d * s.size_h * s.size_w;
    bf16* image = p.drep + static_cast<long long>(blockIdx.x / s.parts) * len * kW;
    const long long begin = static_cast<long long>(blockIdx.x % s.parts) * (kCutThreads * kCutAccesses) + threadIdx.x;
    for (int a = 0; a < kCutAccesses; ++a) {
        const long long at = begin + a * kCutThreads;
        if (at >= len) return;
        const int group = static_cast<int>(at % groups);
        const int voxel = static_cast<int>(at / groups);
        const int x = voxel % s.w, y = voxel / s.w % s.h, z = voxel / s.w / s.h;
        float sum[kW] = {};
        if (p.add != 0) add_channels(image + at * kW, sum);
        for (int k = 0; k < count; ++k) {
            const int4 cut = cuts[k];
            // Unsigned: what lies before the box wraps to a large number.
            const unsigned cz = z - cut.x, cy = y - cut.y, cx = x - cut.z;
            if (cz < static_cast<unsigned>(s.size_d) && cy < static_cast<unsigned>(s.size_h) &&
                cx < static_cast<unsigned>(s.size_w)) {
                const long long from = static_cast<long long>(cut.w) * cut_len + (cz * s.size_h + cy) * s.size_w + cx;
                add_channels(p.dy + (from * groups + group) * kW, sum);
            }
        }
        store_channels(image + at * kW, sum);
    }
}

KERNEL(sub_view_bwd_bf16, CutAdjointParams, kCutThreads, 2) {
    SHARED_ARRAY(int4, cuts, kMaxCuts);
    const CutShape& s = p.shape;
    const int image = p.first + static_cast<int>(blockIdx.x) / s.parts;
    const int count = 2 * (s.views - 1);
    for (int k = static_cast<int>(threadIdx.x); k < count; k += kCutThreads) {
        const int index = candidate(s, image / s.batch, image % s.batch, k);
        const Cut cut = cut_at(p.boxes, s, index);
        // A start behind every voxel covers none.
        cuts[k] = make_int4(cut.inside ? cut.z : s.d, cut.y, cut.x, index);
    }
    __syncthreads();
    if (s.channels % 8 == 0) {
        igemm_cuts<8>(p, cuts, count);
    } else {
        igemm_cuts<1>(p, cuts, count);
    }
}
