// leaky_relu.cu: leaky ReLU.
//
//   y = x where x > 0, else slope x;  dx = dy where y > 0, else slope dy (slope > 0: y has the sign of x)
//
// One thread to 8 elements. Traffic: forward 1 read, 1 write; backward 2 reads, 1 write.
#include "lang/vec.cuh"

struct LeakyReluParams {
    const bf16* x;
    bf16* y;
    long long len;
    float slope;
    int reserved;
};

struct LeakyReluGradParams {
    const bf16* y;
    const bf16* dy;
    bf16* dx;
    long long len;
    float slope;
    int add;
};

KERNEL(leaky_relu_fwd_bf16, LeakyReluParams, 256, 4) {
    for_each_piece(p.len, aligned16(p.x, p.y), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        float v[kW];
        load(p.x + at, v);
#pragma unroll
        for (int i = 0; i < kW; ++i) v[i] = v[i] > 0.0f ? v[i] : v[i] * p.slope;
        store(p.y + at, v);
    });
}

KERNEL(leaky_relu_bwd_bf16, LeakyReluGradParams, 256, 4) {
    for_each_piece(p.len, aligned16(p.y, p.dy, p.dx), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        float y[kW], dy[kW];
        load(p.y + at, y);
        load(p.dy + at, dy);
#pragma unroll
        for (int i = 0; i < kW; ++i) dy[i] = y[i] > 0.0f ? dy[i] : dy[i] * p.slope;
        put(p.dx + at, dy, p.add != 0);
    });
}
