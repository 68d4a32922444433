// elementary.cuh: logarithm, exponential, sine and cosine of src/random/elementary.rs, operation by operation, so that
// a kernel draws and computes the bits the CPU does.
#pragma once

#include "../lang/common.cuh"

// A float whose sums and products are rounded one by one: never fused into a multiply-add, as compilers otherwise do.
struct Rounded {
    float v;
};

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ Rounded operator+(Rounded a, Rounded b) { return {__fadd_rn(a.v, b.v)}; }
__device__ __forceinline__ Rounded operator-(Rounded a, Rounded b) { return {__fsub_rn(a.v, b.v)}; }
__device__ __forceinline__ Rounded operator*(Rounded a, Rounded b) { return {__fmul_rn(a.v, b.v)}; }
__device__ __forceinline__ Rounded operator/(Rounded a, Rounded b) { return {__fdiv_rn(a.v, b.v)}; }
#else
// A host that has fused multiply-adds in its base instruction set would use them; through memory it cannot.
#if defined(__FP_FAST_FMAF)
using RoundedStep = volatile float;
#else
using RoundedStep = float;
#endif
__device__ __forceinline__ Rounded operator+(Rounded a, Rounded b) {
    RoundedStep r = a.v + b.v;
    return {r};
}
__device__ __forceinline__ Rounded operator-(Rounded a, Rounded b) {
    RoundedStep r = a.v - b.v;
    return {r};
}
__device__ __forceinline__ Rounded operator*(Rounded a, Rounded b) {
    RoundedStep r = a.v * b.v;
    return {r};
}
__device__ __forceinline__ Rounded operator/(Rounded a, Rounded b) {
    RoundedStep r = a.v / b.v;
    return {r};
}
#endif

__device__ __forceinline__ Rounded operator+(Rounded a, float b) { return a + Rounded{b}; }
__device__ __forceinline__ Rounded operator-(Rounded a, float b) { return a - Rounded{b}; }
__device__ __forceinline__ Rounded operator*(Rounded a, float b) { return a * Rounded{b}; }
__device__ __forceinline__ Rounded operator+(float a, Rounded b) { return Rounded{a} + b; }

// Natural logarithm of a positive normal number.
__device__ __forceinline__ Rounded ln_rounded(Rounded x) {
    const int bits = __float_as_int(x.v);
    const int exponent = (bits - 0x3f3504f3) >> 23;  // of sqrt(1/2)
    const Rounded m{__uint_as_float(static_cast<unsigned>(bits) - (static_cast<unsigned>(exponent) << 23))};
    const Rounded s = (m - 1.0f) / (m + 1.0f);
    const Rounded q = s * s;
    const Rounded series = ((q * (2.0f / 9.0f) + 2.0f / 7.0f) * q + 2.0f / 5.0f) * q + 2.0f / 3.0f;
    const Rounded e{static_cast<float>(exponent)};
    return e * 0.6933594f + (s * 2.0f + (s * q * series - e * 2.1219444e-4f));
}

// e to the power x, x clamped to [-87, 88].
__device__ __forceinline__ Rounded exp_rounded(Rounded x) {
    x = Rounded{fminf(fmaxf(x.v, -87.0f), 88.0f)};
    const int rounded = static_cast<int>((x * 1.44269504088896340736f + 127.5f).v);
    const Rounded twos{static_cast<float>(rounded - 127)};
    const Rounded r = (x - twos * 0.6933594f) + twos * 2.1219444e-4f;
    const Rounded series =
        ((((r * (1.0f / 720.0f) + 1.0f / 120.0f) * r + 1.0f / 24.0f) * r + 1.0f / 6.0f) * r + 0.5f) * r * r;
    const Rounded power{__uint_as_float(static_cast<unsigned>(rounded) << 23)};
    return (series + r + 1.0f) * power;
}

// Sine and cosine of `turns` whole turns, in [0, 1).
__device__ __forceinline__ void sin_cos_turn(Rounded turns, Rounded& sin, Rounded& cos) {
    const int quarter = static_cast<int>((turns * 4.0f + 0.5f).v);
    const Rounded a = (turns - Rounded{static_cast<float>(quarter)} * 0.25f) * 6.28318530717958647692f;
    const Rounded q = a * a;
    const Rounded s = a + a * q * (((q * (1.0f / 362880.0f) - 1.0f / 5040.0f) * q + 1.0f / 120.0f) * q - 1.0f / 6.0f);
    const Rounded c =
        1.0f + q * ((((q * (-1.0f / 3628800.0f) + 1.0f / 40320.0f) * q - 1.0f / 720.0f) * q + 1.0f / 24.0f) * q - 0.5f);
    const bool odd = (quarter & 1) == 1;
    const auto negate = [](float v, int flag) {
        return __uint_as_float(__float_as_uint(v) ^ (static_cast<unsigned>(flag & 2) << 30));
    };
    sin = Rounded{negate(odd ? c.v : s.v, quarter)};
    cos = Rounded{negate(odd ? s.v : c.v, quarter + 1)};
}
