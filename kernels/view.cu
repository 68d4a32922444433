// view.cu: cuts and augments all views of a batch from volumes that lie in device memory.
//
// What src/views/{pose,intensity}.rs do on the CPU, in their order: sample (a copy, or trilinear through an affine
// map), noise, blur, brightness, contrast, lower resolution, gamma of the negated values, gamma; then rounding to bf16.
// What is done to which view stands in its ViewPlan, drawn on the host, in device memory: the launches are the same for
// every batch, and may be captured into a graph.
// Bits: sampling, noise, blur, brightness and lower resolution are the CPU's, operation by operation (Rounded).
// Contrast and gamma use mean and deviation of the view, in f64 as on the CPU but summed in another order: rounded to
// f32 they may be off by one unit in the last place.
// Launches, each on a grid (parts, views), of which blocks without work end at once: sample; filter along z, y, x
// (blur); range, contrast; filter along z, y, x (resolution); range, gamma, restore, twice; store.
// Traffic: sample reads a view's voxels from the volume, up to 8 neighbours from the caches; every other launch reads a
// view in f32 once and writes it once, where it has work.
#include "random/philox.cuh"

constexpr int kViewThreads = 256;
constexpr int kMaxRadius = 40;  // of a blur: 4 sigma, sigma at most 10 (views/augment.rs)

enum Change {
    kNoise = 1,
    kBlur = 2,
    kBrightness = 4,
    kContrast = 8,
    kLowResolution = 16,
    kGammaInverted = 32,
    kGamma = 64
};
enum Stage { kStageContrast, kStageGammaInverted, kStageGamma, kStageBlur, kStageLowResolution };

// One view; in device memory. Axis order (z, y, x).
struct ViewPlan {
    const unsigned short* voxels;  // the volume, f16, x fastest
    int extent[3];                 // of the volume
    int is_copy;                   // whole voxels: no interpolation
    int first
        [3];  // copy: index in the volume of the view's first voxel. Else: of the block that places are relative to,
    int offset[3];  // index in the block of the first place,
    int last[3];    // largest lower neighbour in the block
    float fraction[3];
    float matrix[9];  // row a: steps along axis a of the volume for a step along z, y, x of the view
    float fill;       // outside of the volume
    PhiloxStream noise;
    int changes;  // bits of Change
    float noise_std;
    float blur_sigma[3];
    float brightness;  // 1 without
    float contrast;
    int low[3];      // voxels along each axis at the lower resolution
    float gamma[2];  // of the negated values, of the values
    int reserved;
};

struct ViewParams {
    const ViewPlan* plans;  // [views]
    float* buffers;         // [2, views, len]
    double* partial;        // [2, views, parts, 5], a Range each
    bf16* out;              // of view_store_bf16: [gridDim.y, len]
    int size[3];
    int views;
    int parts;  // of each view: gridDim.x
    int first;  // view of the blocks (x, 0)
    int stage;  // of a filter, a range, a gamma, a restoration
    int axis;   // of a filter
};

__device__ __forceinline__ int view_of_block(const ViewParams& p) { return p.first + static_cast<int>(blockIdx.y); }

// The plan of this block's view, in shared memory.
__device__ __forceinline__ const ViewPlan& load_plan(const ViewParams& p) {
    static_assert(sizeof(ViewPlan) == 184, "as in src/views/cuda/sampler.rs; copied in words of 8 bytes");
    constexpr int kWords = sizeof(ViewPlan) / 8;
    SHARED_ARRAY(uint2, words, kWords);
    const uint2* from = reinterpret_cast<const uint2*>(p.plans + view_of_block(p));
    for (int i = static_cast<int>(threadIdx.x); i < kWords; i += kViewThreads) words[i] = global_load(from + i);
    __syncthreads();
    return *reinterpret_cast<const ViewPlan*>(words);
}

__device__ __forceinline__ int view_len(const ViewParams& p) { return p.size[0] * p.size[1] * p.size[2]; }

__device__ __forceinline__ float* buffer(const ViewParams& p, int which) {
    return p.buffers + (static_cast<long long>(which & 1) * p.views + view_of_block(p)) * view_len(p);
}

// The buffer that holds the view after so many of its blur and resolution filters: each goes from one to the other.
__device__ __forceinline__ int passes(const ViewPlan& plan, bool blurred, bool lowered) {
    return (blurred && (plan.changes & kBlur) ? 3 : 0) + (lowered && (plan.changes & kLowResolution) ? 3 : 0);
}

// f16 to f32, exact.
__device__ __forceinline__ float half_to_float(unsigned short bits) {
    const unsigned size = (bits & 0x7fffu) << 13;
    unsigned wide = __float_as_uint(__uint_as_float(size) * __uint_as_float(0x77800000u));  // 2^112
    if (size >= 0x0f800000u) wide = size | 0x7f800000u;
    return __uint_as_float(wide | (bits & 0x8000u) << 16);
}

__device__ __forceinline__ float voxel(const ViewPlan& plan, int z, int y, int x) {
    const bool inside = static_cast<unsigned>(z) < static_cast<unsigned>(plan.extent[0]) &&
                        static_cast<unsigned>(y) < static_cast<unsigned>(plan.extent[1]) &&
                        static_cast<unsigned>(x) < static_cast<unsigned>(plan.extent[2]);
    if (!inside) return plan.fill;
    const long long at = (static_cast<long long>(z) * plan.extent[1] + y) * plan.extent[2] + x;
    return half_to_float(global_load(plan.voxels + at));
}

struct Neighbour {
    int lower;       // index in the volume
    Rounded weight;  // of the upper one
};

__device__ __forceinline__ Neighbour neighbour(const ViewPlan& plan, int axis, int z, int y, int x) {
    const float* m = plan.matrix + 3 * axis;
    const Rounded begin =
        (Rounded{plan.fraction[axis]} + Rounded{m[0]} * static_cast<float>(z)) + Rounded{m[1]} * static_cast<float>(y);
    // Far outside all is fill: within a billion voxels integers do not overflow.
    const float place = fminf(fmaxf((begin + Rounded{m[2]} * static_cast<float>(x)).v, -1e9f), 1e9f);
    int floor = static_cast<int>(place);
    if (place < static_cast<float>(floor)) --floor;
    const int index = plan.offset[axis] + floor;
    const bool outside = index < 0 || index > plan.last[axis];
    const Rounded weight = outside ? Rounded{0.0f} : Rounded{place} - static_cast<float>(floor);
    return {plan.first[axis] + min(max(index, 0), plan.last[axis]), weight};
}

__device__ __forceinline__ Rounded mix(Rounded a, Rounded b, Rounded weight) { return a + (b - a) * weight; }

__device__ __forceinline__ float sample(const ViewPlan& plan, int z, int y, int x) {
    if (plan.is_copy != 0) return voxel(plan, plan.first[0] + z, plan.first[1] + y, plan.first[2] + x);
    const Neighbour nz = neighbour(plan, 0, z, y, x), ny = neighbour(plan, 1, z, y, x),
                    nx = neighbour(plan, 2, z, y, x);
    Rounded planes[2];
#pragma unroll
    for (int dz = 0; dz < 2; ++dz) {
        Rounded lines[2];
#pragma unroll
        for (int dy = 0; dy < 2; ++dy) {
            const Rounded a{voxel(plan, nz.lower + dz, ny.lower + dy, nx.lower)};
            const Rounded b{voxel(plan, nz.lower + dz, ny.lower + dy, nx.lower + 1)};
            lines[dy] = mix(a, b, nx.weight);
        }
        planes[dz] = mix(lines[0], lines[1], ny.weight);
    }
    return mix(planes[0], planes[1], nz.weight).v;
}

// A thread makes four voxels that follow each other: the noise of one Philox block.
KERNEL(view_sample_f16, ViewParams, kViewThreads, 2) {
    const ViewPlan& plan = load_plan(p);
    float* out = buffer(p, 0);
    const int len = view_len(p);
    for (int quad = static_cast<int>(blockIdx.x) * kViewThreads + static_cast<int>(threadIdx.x); 4 * quad < len;
         quad += static_cast<int>(gridDim.x) * kViewThreads) {
        float noise[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const bool noisy = (plan.changes & kNoise) != 0;
        if (noisy) philox_normals(plan.noise, static_cast<unsigned>(quad), noise);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int at = 4 * quad + i;
            if (at >= len) break;
            const int line = at / p.size[2];
            Rounded v{sample(plan, line / p.size[1], line % p.size[1], at % p.size[2])};
            if (noisy) v = v + Rounded{plan.noise_std} * noise[i];
            global_store(out + at, v.v);
        }
    }
}

// Weights of a Gaussian of standard deviation sigma, cut at 4 sigma; by the whole block.
__device__ __forceinline__ void gaussian(float sigma, int radius, float* weights) {
    for (int k = static_cast<int>(threadIdx.x); k < 2 * radius + 1; k += kViewThreads) {
        const Rounded distance =
            Rounded{static_cast<float>(k < radius ? radius - k : k - radius)} / Rounded{fmaxf(sigma, 1e-3f)};
        weights[k] = exp_rounded(Rounded{-0.5f} * distance * distance).v;
    }
    __syncthreads();
    Rounded total{0.0f};
    for (int k = 0; k < 2 * radius + 1; ++k) total = total + weights[k];
    __syncthreads();
    for (int k = static_cast<int>(threadIdx.x); k < 2 * radius + 1; k += kViewThreads) {
        weights[k] = (Rounded{weights[k]} / total).v;
    }
    __syncthreads();
}

KERNEL(view_filter_f32, ViewParams, kViewThreads, 2) {
    SHARED_ARRAY(float, weights, 2 * kMaxRadius + 1);
    const ViewPlan& plan = load_plan(p);
    const bool lower = p.stage == kStageLowResolution;
    if ((plan.changes & (lower ? kLowResolution : kBlur)) == 0) return;
    const int done = passes(plan, lower, false) + p.axis;
    const float* from = buffer(p, done);
    float* to = buffer(p, done + 1);
    const int n = p.size[p.axis], m = plan.low[p.axis];
    const int inner = p.axis == 0 ? p.size[1] * p.size[2] : p.axis == 1 ? p.size[2] : 1;
    const int radius = lower ? 0 : min(min(static_cast<int>(ceilf(4.0f * plan.blur_sigma[p.axis])), n), kMaxRadius);
    if (!lower) gaussian(plan.blur_sigma[p.axis], radius, weights);
    const int len = view_len(p);
    for (int at = static_cast<int>(blockIdx.x) * kViewThreads + static_cast<int>(threadIdx.x); at < len;
         at += static_cast<int>(gridDim.x) * kViewThreads) {
        const int i = at / inner % n;
        const float* row = from + (at - i * inner);
        Rounded sum{0.0f};
        if (lower) {
            // Voxel k of the m left is voxel floor((k + 1/2) n / m).
            const Rounded scaled =
                (Rounded{static_cast<float>(i)} + 0.5f) * static_cast<float>(m) / Rounded{static_cast<float>(n)};
            const Rounded place{fminf(fmaxf((scaled - 0.5f).v, 0.0f), static_cast<float>(m - 1))};
            const int low = static_cast<int>(place.v), high = min(low + 1, m - 1);
            const Rounded weight = place - static_cast<float>(low);
            const auto nearest = [&](int k) {
                return global_load(row + static_cast<long long>((2 * k + 1) * n / (2 * m)) * inner);
            };
            sum = sum + Rounded{nearest(low)} * (Rounded{1.0f} - weight);
            sum = sum + Rounded{nearest(high)} * weight;
        } else {
            for (int k = 0; k < 2 * radius + 1; ++k) {
                const int source = min(max(i + k - radius, 0), n - 1);
                sum = sum + Rounded{global_load(row + static_cast<long long>(source) * inner)} * weights[k];
            }
        }
        global_store(to + at, sum.v);
    }
}

// Smallest and largest value, and sums of differences from `origin` and of their squares: taken relative to a number
// among the values, so that the deviation of a view far from 0 keeps its digits.
struct Range {
    float low, high;
    double sum, square, origin;
};
constexpr int kRange = 5;  // numbers of a Range

__device__ __forceinline__ Range empty_range(double origin) {
    const float infinity = __uint_as_float(0x7f800000u);
    return {infinity, -infinity, 0.0, 0.0, origin};
}

// Both have the same origin.
__device__ __forceinline__ Range join(const Range& a, const Range& b) {
    return {fminf(a.low, b.low), fmaxf(a.high, b.high), a.sum + b.sum, a.square + b.square, a.origin};
}

__device__ __forceinline__ void see(Range& range, float v) {
    const double d = static_cast<double>(v) - range.origin;
    range = join(range, {v, v, d, d * d, range.origin});
}

__device__ __forceinline__ Range join_warp(Range r) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
        r = join(r, {__shfl_xor_sync(kFullMask, r.low, step), __shfl_xor_sync(kFullMask, r.high, step),
                     __shfl_xor_sync(kFullMask, r.sum, step), __shfl_xor_sync(kFullMask, r.square, step), r.origin});
    }
    return r;
}

// partial[which] of part `part` of this block's view.
__device__ __forceinline__ double* partial_of(const ViewParams& p, int which, int part) {
    return p.partial + ((static_cast<long long>(which) * p.views + view_of_block(p)) * p.parts + part) * kRange;
}

// Over the block, into partial[which] of this part. All threads must call it.
__device__ __forceinline__ void store_range(const ViewParams& p, int which, Range range) {
    constexpr int kWarps = kViewThreads / kWarp;
    SHARED_ARRAY(float, bounds, 2 * kWarps);
    SHARED_ARRAY(double, sums, 2 * kWarps);
    range = join_warp(range);
    if (lane_id() == 0) {
        const int at = 2 * warp_id();
        bounds[at] = range.low, bounds[at + 1] = range.high;
        sums[at] = range.sum, sums[at + 1] = range.square;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    Range all = empty_range(range.origin);
    for (int at = 0; at < 2 * kWarps; at += 2) {
        all = join(all, {bounds[at], bounds[at + 1], sums[at], sums[at + 1], range.origin});
    }
    double* to = partial_of(p, which, static_cast<int>(blockIdx.x));
    global_store(to, static_cast<double>(all.low));
    global_store(to + 1, static_cast<double>(all.high));
    global_store(to + 2, all.sum);
    global_store(to + 3, all.square);
    global_store(to + 4, all.origin);
}

// Of the whole view, in every thread; each warp computes it.
__device__ __forceinline__ Range whole_range(const ViewParams& p, int which) {
    Range range = empty_range(global_load(partial_of(p, which, 0) + 4));
    for (int part = lane_id(); part < p.parts; part += kWarp) {
        const double* at = partial_of(p, which, part);
        range = join(range, {static_cast<float>(global_load(at)), static_cast<float>(global_load(at + 1)),
                             global_load(at + 2), global_load(at + 3), range.origin});
    }
    return join_warp(range);
}

// Mean and standard deviation of `len` values.
struct Moments {
    double mean, deviation;
};
__device__ __forceinline__ Moments moments_of(const Range& range, int len) {
    const double shift = range.sum / len;
    return {range.origin + shift, sqrt(fmax(range.square / len - shift * shift, 0.0))};
}

__device__ __forceinline__ bool has_stage(const ViewPlan& plan, int stage) {
    const int change = stage == kStageContrast ? kContrast : stage == kStageGammaInverted ? kGammaInverted : kGamma;
    return (plan.changes & change) != 0;
}

// A value as a stage takes it.
__device__ __forceinline__ float staged(const ViewPlan& plan, int stage, float v) {
    return stage == kStageContrast ? (Rounded{v} * plan.brightness).v : stage == kStageGammaInverted ? -v : v;
}

// Calls f(index) for the elements of this block's part.
template <class F> __device__ __forceinline__ void for_part(const ViewParams& p, F f) {
    const int len = view_len(p);
    for (int at = static_cast<int>(blockIdx.x) * kViewThreads + static_cast<int>(threadIdx.x); at < len;
         at += static_cast<int>(gridDim.x) * kViewThreads) {
        f(at);
    }
}

KERNEL(view_range_f32, ViewParams, kViewThreads, 2) {
    const ViewPlan& plan = load_plan(p);
    if (!has_stage(plan, p.stage)) return;
    const float* view = buffer(p, passes(plan, true, p.stage != kStageContrast));
    Range range = empty_range(static_cast<double>(staged(plan, p.stage, global_load(view))));
    for_part(p, [&](int at) { see(range, staged(plan, p.stage, global_load(view + at))); });
    store_range(p, 0, range);
}

KERNEL(view_contrast_f32, ViewParams, kViewThreads, 2) {
    const ViewPlan& plan = load_plan(p);
    if ((plan.changes & (kBrightness | kContrast)) == 0) return;
    float* view = buffer(p, passes(plan, true, false));
    if (!has_stage(plan, kStageContrast)) {
        for_part(p, [&](int at) { global_store(view + at, staged(plan, kStageContrast, global_load(view + at))); });
        return;
    }
    const Range range = whole_range(p, 0);
    const float low = range.low, high = range.high;
    const Rounded mean{static_cast<float>(moments_of(range, view_len(p)).mean)};
    for_part(p, [&](int at) {
        const Rounded v{staged(plan, kStageContrast, global_load(view + at))};
        const Rounded stretched = (v - mean) * plan.contrast + mean;
        global_store(view + at, fminf(fmaxf(stretched.v, low), high));
    });
}

// A view without contrast stays as it is; no NaN passes this.
__device__ __forceinline__ bool is_flat(const Range& range) { return !(range.high - range.low > 1e-7f); }

// Raises values, mapped to [0, 1], to a power, and measures the result; the negated values of stage kStageGammaInverted
// stay negated until view_restore_f32.
KERNEL(view_gamma_f32, ViewParams, kViewThreads, 2) {
    const ViewPlan& plan = load_plan(p);
    if (!has_stage(plan, p.stage)) return;
    const Range before = whole_range(p, 0);
    if (is_flat(before)) return;
    float* view = buffer(p, passes(plan, true, true));
    const Rounded low{before.low};
    const Rounded width = Rounded{before.high} - low;
    const Rounded exponent{plan.gamma[p.stage - kStageGammaInverted]};
    Range after = empty_range(static_cast<double>(before.low));
    for_part(p, [&](int at) {
        const Rounded v{staged(plan, p.stage, global_load(view + at))};
        const float unit = fmaxf(((v - low) / width).v, 1.17549435e-38f);  // the smallest normal number
        const float raised = (exp_rounded(exponent * ln_rounded(Rounded{unit})) * width + low).v;
        see(after, raised);
        global_store(view + at, raised);
    });
    store_range(p, 1, after);
}

// Gives the view the mean and deviation it had before view_gamma_f32.
KERNEL(view_restore_f32, ViewParams, kViewThreads, 2) {
    const ViewPlan& plan = load_plan(p);
    if (!has_stage(plan, p.stage)) return;
    const Range range = whole_range(p, 0);
    if (is_flat(range)) return;
    float* view = buffer(p, passes(plan, true, true));
    const Moments before = moments_of(range, view_len(p)), after = moments_of(whole_range(p, 1), view_len(p));
    const Rounded scale{static_cast<float>(before.deviation / fmax(after.deviation, 1e-8))};
    const Rounded mean_before{static_cast<float>(before.mean)}, mean_after{static_cast<float>(after.mean)};
    for_part(p, [&](int at) {
        const Rounded v = (Rounded{global_load(view + at)} - mean_after) * scale + mean_before;
        global_store(view + at, staged(plan, p.stage, v.v));
    });
}

KERNEL(view_store_bf16, ViewParams, kViewThreads, 2) {
    const ViewPlan& plan = load_plan(p);
    const float* view = buffer(p, passes(plan, true, true));
    bf16* out = p.out + static_cast<long long>(blockIdx.y) * view_len(p);
    for_part(p, [&](int at) { global_store(out + at, to_bf16(global_load(view + at))); });
}
