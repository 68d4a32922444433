// residual_add.cu: sum of two values, y = a + b; da = dy, db = dy.
//
// One thread to 8 elements. Traffic: forward 2 reads, 1 write; backward 1 read, up to 2 writes.
#include "lang/vec.cuh"

struct ResidualAddParams {
    const bf16* a;
    const bf16* b;
    bf16* y;
    long long len;
};

struct ResidualAddGradParams {
    const bf16* dy;
    bf16* da;  // these two may be null, or the same
    bf16* db;
    long long len;
    int add_a;
    int add_b;
};

KERNEL(residual_add_fwd_bf16, ResidualAddParams, 256, 4) {
    for_each_piece(p.len, aligned16(p.a, p.b, p.y), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        float a[kW], b[kW];
        load(p.a + at, a);
        load(p.b + at, b);
#pragma unroll
        for (int i = 0; i < kW; ++i) a[i] += b[i];
        store(p.y + at, a);
    });
}

KERNEL(residual_add_bwd_bf16, ResidualAddGradParams, 256, 4) {
    for_each_piece(p.len, aligned16(p.dy, p.da, p.db), [&](auto width, long long at) {
        constexpr int kW = decltype(width)::value;
        float a[kW], b[kW];
        load(p.dy + at, a);
#pragma unroll
        for (int i = 0; i < kW; ++i) b[i] = a[i];
        if (p.da != nullptr) put(p.da + at, a, p.add_a != 0);
        if (p.db != nullptr) put(p.db + at, b, p.add_b != 0);
    });
}
