// gelu.cu: exact GELU.
//
//   y = x / 2 (1 + erf(x / sqrt 2));  dx = dy (Phi(x) + x phi(x)), Phi the normal distribution, phi its density
//
// One thread to 8 elements. Traffic: forward 1 read, 1 write; backward 2 reads, 1 write. Behind a convolution that
// makes it on its way (conv3d/igemm.cuh) the forward pass launches nothing.
// Source: Hendrycks and Gimpel 2016, arXiv 1606.08415.
#include "gelu.cuh"
#include "lang/vec.cuh"

struct GeluParams {
    const bf16* x;
    bf16* y;
    long long len;
};

struct GeluGradParams {
    const bf16* x;
    const bf16* dy;
    bf16* dx;
    long long len;
    int add;
    int reserved;
};

constexpr float kDensity = 0.39894228040143268f;  // 1 / sqrt(2 pi)

KERNEL(gelu_fwd_bf16, GeluParams, 256, 4) {
    for_each_piece(p.len, aligned16(p.x, p.y), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        float v[kW];
        load(p.x + at, v);
#pragma unroll
        for (int i = 0; i < kW; ++i) v[i] = gelu(v[i]);
        store(p.y + at, v);
    });
}

KERNEL(gelu_bwd_bf16, GeluGradParams, 256, 4) {
    for_each_piece(p.len, aligned16(p.x, p.dy, p.dx), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        float x[kW], dy[kW];
        load(p.x + at, x);
        load(p.dy + at, dy);
#pragma unroll
        for (int i = 0; i < kW; ++i) {
            const float cumulative = 0.5f * (1.0f + erff(x[i] * kInvSqrt2));
            const float slope = fmaf(expf(-0.5f * x[i] * x[i]) * kDensity, x[i], cumulative);
            dy[i] *= slope;
        }
        put(p.dx + at, dy, p.add != 0);
    });
}
