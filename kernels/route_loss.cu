// route_loss.cu: smooth L1 between predicted and true sums of vectors along every route through all views.
//
//   mean over samples, orders r of the V views, axes of h(s_r), s_r = sum over steps (d - g)[r_t, r_t+1] + (d - g)[0,
//   0] dd[i,j] = dy / (N V! 3) sum over routes with the step (i, j) of h'(s_r); [0,0] over all routes; others on the
//   diagonal 0
//
// Routes are numbered: digit t of the number in base V, V - 1, .. picks one of the views left, so any thread makes any
// route. Routes with the step (i, j) are orders of V - 1 things, the two views being one thing: (V - 1)! of them.
// Forward: one block. Backward: grid N V V, a block for each entry. V is at most 8. Traffic: [N V V 3] twice, small.
// Source: arXiv 2509.05967, vector task, as its authors' program computes it.
#include "loss.cuh"

constexpr int kMaxViews = 8;
constexpr int kEntries = kMaxViews * kMaxViews * 3;
constexpr int kRouteThreads = 128;

struct RouteForwardParams {
    const float* pred;  // [batch, views, views, 3]
    const float* target;
    float* loss;
    int batch, views;
    int routes;  // views!
    int reserved;
};

struct RouteBackwardParams {
    const float* pred;
    const float* target;
    const float* dy;
    float* dpred;
    int batch, views;
    int routes;
    int add;
};

// What is left to visit: a list of views, one in each 4 bits, the first lowest.
struct Remaining {
    unsigned views;
    int count;
    int number;  // of the order, among count!

    __device__ __forceinline__ int take(int orders_of_rest) {
        const int at = 4 * (number / orders_of_rest);
        number %= orders_of_rest;
        const unsigned below = (1u << at) - 1u;
        const int view = static_cast<int>(views >> at) & 15;
        views = (views & below) | ((views >> 4) & ~below);
        --count;
        return view;
    }
};

__device__ __forceinline__ int factorial(int n) {
    int product = 1;
    for (int i = 2; i <= n; ++i) product *= i;
    return product;
}

// Adds the errors along the route with this number to `sums`. With a step (i, j), i != j, only routes that contain it
// are numbered: j is visited where i is, right after it.
__device__ __forceinline__ void along_route(const float* errors, int views, int number, int i, int j,
                                            float (&sums)[3]) {
    const bool all = i == j;
    Remaining rest{0x76543210u, all ? views : views - 1, number};
    if (!all) {
        const unsigned below = (1u << (4 * j)) - 1u;
        rest.views = (rest.views & below) | ((rest.views >> 4) & ~below);
    }
#pragma unroll
    for (int a = 0; a < 3; ++a) sums[a] = errors[a];
    int orders = factorial(rest.count);
    int from = -1;
    while (rest.count > 0) {
        orders /= rest.count;
        int view = rest.take(orders);
        for (int step = 0; step < 2; ++step) {
            if (from >= 0) {
#pragma unroll
                for (int a = 0; a < 3; ++a) sums[a] += errors[(from * views + view) * 3 + a];
            }
            from = view;
            if (all || view != i) break;
            view = j;
        }
    }
}

// Errors of one sample into shared memory, by the whole block.
template <int kThreads>
__device__ __forceinline__ void load_errors(float* errors, const float* pred, const float* target, int sample,
                                            int views) {
    const int len = views * views * 3;
    const long long at = static_cast<long long>(sample) * len;
    for (int i = static_cast<int>(threadIdx.x); i < len; i += kThreads) {
        errors[i] = global_load(pred + at + i) - global_load(target + at + i);
    }
    __syncthreads();
}

KERNEL(route_loss_fwd_f32, RouteForwardParams, kLossThreads, 1) {
    SHARED_ARRAY(float, errors, kEntries);
    float sum = 0.0f;
    for (int n = 0; n < p.batch; ++n) {
        load_errors<kLossThreads>(errors, p.pred, p.target, n, p.views);
        for (int r = static_cast<int>(threadIdx.x); r < p.routes; r += kLossThreads) {
            float sums[3];
            along_route(errors, p.views, r, 0, 0, sums);
#pragma unroll
            for (int a = 0; a < 3; ++a) sum += smooth_l1(sums[a]);
        }
        __syncthreads();  // `errors` is written again
    }
    sum = block_sum<kLossThreads>(sum);
    const float count = static_cast<float>(p.batch) * static_cast<float>(p.routes) * 3.0f;
    if (threadIdx.x == 0) global_store(p.loss, sum / count);
}

KERNEL(route_loss_bwd_f32, RouteBackwardParams, kRouteThreads, 1) {
    SHARED_ARRAY(float, errors, kEntries);
    const int entry = static_cast<int>(blockIdx.x);
    const int j = entry % p.views, i = entry / p.views % p.views, n = entry / p.views / p.views;
    load_errors<kRouteThreads>(errors, p.pred, p.target, n, p.views);
    // The closing step of every route is (0, 0); no other is on the diagonal.
    const int routes = i != j ? p.routes / p.views : i == 0 ? p.routes : 0;
    float slopes[3] = {0.0f, 0.0f, 0.0f};
    for (int r = static_cast<int>(threadIdx.x); r < routes; r += kRouteThreads) {
        float sums[3];
        along_route(errors, p.views, r, i, j, sums);
#pragma unroll
        for (int a = 0; a < 3; ++a) slopes[a] += smooth_l1_slope(sums[a]);
    }
    block_sum<kRouteThreads>(slopes);
    if (threadIdx.x != 0) return;
    const float count = static_cast<float>(p.batch) * static_cast<float>(p.routes) * 3.0f;
    const float factor = global_load(p.dy) / count;
    float* dpred = p.dpred + static_cast<long long>(entry) * 3;
#pragma unroll
    for (int a = 0; a < 3; ++a) set_or_add(dpred + a, factor * slopes[a], p.add != 0);
}
