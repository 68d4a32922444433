// device_math.h: bf16 and CUDA's arithmetic builtins on the host. Included by device.h.
#pragma once

// bfloat16: the upper half of a float.
struct alignas(2) bf16 {
    uint16_t bits;
};

__forceinline__ float to_float(bf16 v) { return emu::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

// Round to nearest even; every NaN becomes 0x7fff, as the hardware's cvt.rn.bf16 does.
__forceinline__ bf16 to_bf16(float v) {
    const uint32_t u = emu::bit_cast<uint32_t>(v);
    if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{0x7fff};
    return bf16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

__forceinline__ uint32_t pack_bf16(float lo, float hi) {
    return static_cast<uint32_t>(to_bf16(lo).bits) | static_cast<uint32_t>(to_bf16(hi).bits) << 16;
}

__forceinline__ void unpack_bf16(uint32_t v, float& lo, float& hi) {
    lo = emu::bit_cast<float>(v << 16);
    hi = emu::bit_cast<float>(v & 0xffff0000u);
}

__forceinline__ unsigned __float_as_uint(float v) { return emu::bit_cast<unsigned>(v); }
__forceinline__ int __float_as_int(float v) { return emu::bit_cast<int>(v); }
__forceinline__ float __uint_as_float(unsigned v) { return emu::bit_cast<float>(v); }
__forceinline__ float __int_as_float(int v) { return emu::bit_cast<float>(v); }

__forceinline__ int __popc(unsigned v) { return __builtin_popcount(v); }
__forceinline__ int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
__forceinline__ int __ffs(int v) { return __builtin_ffs(v); }
__forceinline__ unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

// Macros, because some C libraries declare functions of these names.
namespace emu {
__forceinline__ float rsqrt_f32(float v) { return 1.0f / sqrtf(v); }
__forceinline__ float recip_f32(float v) { return 1.0f / v; }
__forceinline__ float div_f32(float a, float b) { return a / b; }
}  // namespace emu
#define rsqrtf(v) emu::rsqrt_f32(v)
#define __frsqrt_rn(v) emu::rsqrt_f32(v)
#define __frcp_rn(v) emu::recip_f32(v)
#define __fdividef(a, b) emu::div_f32(a, b)
#define __fdiv_rn(a, b) emu::div_f32(a, b)
#define __fsqrt_rn(v) sqrtf(v)
#define __fmaf_rn(a, b, c) fmaf(a, b, c)
#define __expf(v) expf(v)
#define __logf(v) logf(v)
#define __sinf(v) sinf(v)
#define __cosf(v) cosf(v)

__forceinline__ int __float2int_rn(float v) { return static_cast<int>(rintf(v)); }
__forceinline__ int __float2int_rd(float v) { return static_cast<int>(floorf(v)); }
__forceinline__ float __int2float_rn(int v) { return static_cast<float>(v); }
__forceinline__ float __uint2float_rn(unsigned v) { return static_cast<float>(v); }

// CUDA's min and max: by value, mixed signs go to unsigned.
#define EMU_MIN_MAX(T, A, B)                                                                  \
    __forceinline__ T min(A a, B b) {                                                         \
        return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b); \
    }                                                                                         \
    __forceinline__ T max(A a, B b) {                                                         \
        return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a); \
    }
EMU_MIN_MAX(int, int, int)
EMU_MIN_MAX(unsigned, unsigned, unsigned)
EMU_MIN_MAX(unsigned, int, unsigned)
EMU_MIN_MAX(unsigned, unsigned, int)
EMU_MIN_MAX(long, long, long)
EMU_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMU_MIN_MAX(long long, long long, long long)
EMU_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
#undef EMU_MIN_MAX
__forceinline__ float min(float a, float b) { return fminf(a, b); }
__forceinline__ float max(float a, float b) { return fmaxf(a, b); }
__forceinline__ double min(double a, double b) { return fmin(a, b); }
__forceinline__ double max(double a, double b) { return fmax(a, b); }
