// numbers.h: arithmetic as the PTX ISA defines it: the one NaN, saturation, rounding modes, bf16 and f16,
// approximations.
#pragma once

#include <cfenv>
#include <cmath>
#include <limits>
#include <type_traits>

#include "machine.h"

namespace ptx {

// Results of f32 arithmetic: the hardware's one NaN.
inline float cn(float v) { return v == v ? v : bits<float>(0x7fffffffu); }
inline double cn(double v) { return v; }
inline float ftz(float v) { return std::fabs(v) < 1.17549435e-38f ? std::copysign(0.0f, v) : v; }
inline float sat(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }  // NaN: 0
template <class T> inline T fmin_(T a, T b) {
    if (a != a) return b != b ? cn(b) : b;
    if (b != b) return a;
    if (a == b) return std::signbit(a) ? a : b;
    return a < b ? a : b;
}
template <class T> inline T fmax_(T a, T b) {
    if (a != a) return b != b ? cn(b) : b;
    if (b != b) return a;
    if (a == b) return std::signbit(a) ? b : a;
    return a > b ? a : b;
}
inline float fma_(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma_(double a, double b, double c) { return __builtin_fma(a, b, c); }

// Rounding modes other than to the nearest. What is read and written through volatile stays between the two settings.
struct Rounding {
    int old = fegetround();
    explicit Rounding(int mode) { fesetround(mode); }
    ~Rounding() { fesetround(old); }
};
template <int kMode> inline float fma_mode(float a, float b, float c) {
    const Rounding set(kMode);
    volatile float x = a, y = b, z = c;
    volatile float out = __builtin_fmaf(x, y, z);
    return cn(out);
}
template <int kMode> inline float add_mode(float a, float b) {
    const Rounding set(kMode);
    volatile float x = a, y = b;
    volatile float out = x + y;
    return cn(out);
}
template <int kMode> inline float mul_mode(float a, float b) {
    const Rounding set(kMode);
    volatile float x = a, y = b;
    volatile float out = x * y;
    return cn(out);
}

// Functions that the hardware approximates: correctly rounded here, or, with EMU_PTX_APPROX=n, off by up to n units in
// the last place, by a hash of the argument.
inline float approx(double exact, float argument) {
    const float v = static_cast<float>(exact);
    if (v != v) return cn(v);
    const int ulps = options().approx_ulps;
    if (ulps == 0 || v == 0.0f || std::isinf(v)) return v;
    const u32 hash = (bits<u32>(argument) * 2654435761u) >> 16;
    const s32 by = static_cast<s32>(hash % static_cast<u32>(2 * ulps + 1)) - ulps;
    return bits<float>(bits<u32>(v) + static_cast<u32>(by));
}

inline u16 to_bf16(float v) {
    const u32 x = bits<u32>(v);
    if (v != v) return 0x7fff;
    return static_cast<u16>((x + 0x7fffu + ((x >> 16) & 1u)) >> 16);
}
inline u16 to_bf16_rz(float v) { return v != v ? 0x7fff : static_cast<u16>(bits<u32>(v) >> 16); }
inline float from_bf16(u16 v) { return bits<float>(static_cast<u32>(v) << 16); }
inline float from_f16(u16 v) {
    const u32 sign = static_cast<u32>(v >> 15) << 31, exponent = v >> 10 & 31, fraction = v & 1023;
    if (exponent == 31)
        return fraction != 0 ? cn(std::numeric_limits<float>::quiet_NaN()) : bits<float>(sign | 0x7f800000u);
    const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                     : bits<float>((exponent + 112) << 23 | fraction << 13);
    return bits<float>(sign | bits<u32>(size));
}

// To whole numbers, saturating. mode: 0 nearest even, 1 towards zero, 2 down, 3 up. NaN gives 0, with 64 bits on
// either side the highest bit alone.
template <class I, class F> inline I to_int(F v, int mode) {
    if (v != v) return sizeof(I) == 8 || sizeof(F) == 8 ? static_cast<I>(u64{1} << (8 * sizeof(I) - 1)) : I{0};
    double x = static_cast<double>(v);
    x = mode == 0 ? std::nearbyint(x) : mode == 1 ? std::trunc(x) : mode == 2 ? std::floor(x) : std::ceil(x);
    const double low = static_cast<double>(std::numeric_limits<I>::min());
    const double high = static_cast<double>(std::numeric_limits<I>::max());
    if (x <= low) return std::numeric_limits<I>::min();
    if (x >= high) return std::numeric_limits<I>::max();
    return static_cast<I>(x);
}
// Whole numbers: division by 0 gives all ones, the remainder the dividend (undefined in the manual; what cards are seen
// to do).
template <class T> inline T div_(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed<T>::value && b == static_cast<T>(-1))
        return static_cast<T>(-static_cast<std::make_unsigned_t<T>>(a));
    return static_cast<T>(a / b);
}
template <class T> inline T rem_(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed<T>::value && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
}

inline u32 prmt(u32 a, u32 b, u32 s) {
    const u64 both = static_cast<u64>(b) << 32 | a;
    u32 out = 0;
    for (u32 k = 0; k < 4; ++k) {
        const u32 sel = s >> (4 * k) & 15;
        u32 byte = static_cast<u32>(both >> (8 * (sel & 7))) & 255;
        if (sel & 8) byte = (byte & 128) ? 255 : 0;
        out |= byte << (8 * k);
    }
    return out;
}
template <class T> inline T bfi(T a, T b, u32 pos, u32 len) {  // a into b
    constexpr u32 width = 8 * sizeof(T);
    pos &= 255, len &= 255;
    for (u32 k = 0; k < len && pos + k < width; ++k)
        b = static_cast<T>((b & ~(T{1} << (pos + k))) | ((a >> k & 1) << (pos + k)));
    return b;
}

}  // namespace ptx
