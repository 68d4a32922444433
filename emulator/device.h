// device.h: CUDA's device language for the host compiler. Only what our kernels use; anything else does not compile,
// plain __shared__ included (it would escape the checks).
#pragma once

#include <math.h>
#include <string.h>

#include <cstdint>
#include <type_traits>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))

namespace emu {

struct Index {
    unsigned x, y, z;
};

// A place in the source, for reports and to see that all lanes stand at the same one.
struct Site {
    const char* file;
    int line;
};

struct Counters {
    uint64_t global_read, global_written;    // bytes
    uint64_t shared_moved;                   // bytes, by ldmatrix and cp.async
    uint64_t mma;                            // m16n8k16 operations
    uint64_t bank_phases, bank_wavefronts;   // of ldmatrix: equal without bank conflicts
    uint64_t sectors_read, sectors_written;  // distinct 32-byte sectors, when tracking
    uint64_t memory_read, memory_written;    // bytes between memory and a cache, see cache.h
};

// What device code reads at once: the state of the OS thread that runs blocks, and of the CUDA thread it is in.
struct Current {
    Index thread, block, block_dim, grid_dim;
    Counters counters;
    unsigned char* arena;          // shared memory of the block
    uint32_t dynamic_bytes;        // its dynamic part, at offset 0
    bool tracking;                 // record the 32-byte sectors touched
    std::vector<uint32_t>* trace;  // the block's accesses in order, for cache.h, or null
};

// Static TLS: the library is opened by dlopen, and these accesses are everywhere.
extern __thread Current current __attribute__((tls_model("initial-exec")));

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void fail_misaligned(const void* p, unsigned bytes);

void sync_threads(Site site);
void sync_warp(unsigned mask, Site site);
enum class Shuffle { kXor, kDown, kUp, kIndex };
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int arg, int width, Site site);
unsigned ballot(unsigned mask, bool predicate, Site site);

unsigned char* static_shared(const void* key, uint32_t bytes, uint32_t align);
unsigned char* dynamic_shared(uint32_t bytes);
uint32_t shared_offset(const void* p);

void track(const void* p, unsigned bytes, bool write);

void cp_async(uint32_t smem, const void* global, unsigned bytes, unsigned valid);
void cp_async_commit();
void cp_async_wait(int pending);
void ldmatrix_any(uint32_t* r, uint32_t smem, int count, bool trans, Site site);
void mma_bf16(float* acc, const uint32_t* a, const uint32_t* b, int m, int n);

template <int kCount, bool kTrans>
__forceinline__ void ldmatrix(uint32_t (&r)[kCount], uint32_t smem, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
    ldmatrix_any(r, smem, kCount, kTrans, Site{file, line});
}

// Kernels register themselves before main; the driver finds them by name.
using Invoke = void (*)(const void* params);
struct Kernel {
    const char* name;
    Invoke invoke;
    uint32_t params_bytes, threads;
    const char* file;
};
struct Registration {
    explicit Registration(const Kernel& kernel);
};

template <class To, class From> __forceinline__ To bit_cast(From v) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To out;
    __builtin_memcpy(&out, &v, sizeof(out));
    return out;
}

}  // namespace emu

#define threadIdx (emu::current.thread)
#define blockIdx (emu::current.block)
#define blockDim (emu::current.block_dim)
#define gridDim (emu::current.grid_dim)
constexpr int warpSize = 32;

// Parameters by value, as on the device: the compiler then knows that no store through a pointer changes them.
#define KERNEL(name, Params, threads, min_blocks)                                                                 \
    static_assert((threads) % 32 == 0 && (threads) <= 1024, "whole warps");                                       \
    static_assert(sizeof(Params) <= 4096, "parameters of one launch");                                            \
    static_assert(std::is_trivially_copyable<Params>::value, "parameters are copied as bytes");                   \
    __attribute__((noinline)) static void name([[maybe_unused]] const Params p);                                  \
    static const emu::Registration emu_registration_##name(                                                       \
        emu::Kernel{#name, [](const void* params) { name(*static_cast<const Params*>(params)); }, sizeof(Params), \
                    (threads), __FILE__});                                                                        \
    __attribute__((noinline)) static void name([[maybe_unused]] const Params p)

// The static variable is only a key: one per expansion and per template instance, as with __shared__.
#define SHARED_ARRAY(T, name, count)      \
    static const char emu_key_##name = 0; \
    T(&name)                              \
    [count] = *reinterpret_cast<T(*)[count]>(emu::static_shared(&emu_key_##name, sizeof(T) * (count), alignof(T)))

#define EXTERN_SHARED(name) unsigned char* const name = emu::current.arena
#define DYNAMIC_SHARED(name, bytes) unsigned char* const name = emu::dynamic_shared(bytes)

template <class T> __forceinline__ T global_load(const T* p) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16,
                  "one memory instruction");
    static_assert(alignof(T) == sizeof(T), "use float4, uint4, ...: types aligned to their size");
    if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) emu::fail_misaligned(p, sizeof(T));
    emu::current.counters.global_read += sizeof(T);
    if (emu::current.tracking) emu::track(p, sizeof(T), false);
    return *p;
}

template <class T> __forceinline__ void global_store(T* p, T v) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16,
                  "one memory instruction");
    static_assert(alignof(T) == sizeof(T), "use float4, uint4, ...: types aligned to their size");
    if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) emu::fail_misaligned(p, sizeof(T));
    emu::current.counters.global_written += sizeof(T);
    if (emu::current.tracking) emu::track(p, sizeof(T), true);
    *p = v;
}

#define EMU_VECTOR2(T, base, bytes) \
    struct alignas(bytes) T {       \
        base x, y;                  \
    };                              \
    __forceinline__ T make_##T(base x, base y) { return T{x, y}; }
#define EMU_VECTOR4(T, base, bytes) \
    struct alignas(bytes) T {       \
        base x, y, z, w;            \
    };                              \
    __forceinline__ T make_##T(base x, base y, base z, base w) { return T{x, y, z, w}; }
EMU_VECTOR2(int2, int, 8)
EMU_VECTOR2(uint2, unsigned, 8)
EMU_VECTOR2(float2, float, 8)
EMU_VECTOR2(longlong2, long long, 16)
EMU_VECTOR2(ulonglong2, unsigned long long, 16)
EMU_VECTOR2(ushort2, unsigned short, 4)
EMU_VECTOR4(ushort4, unsigned short, 8)
EMU_VECTOR4(uchar4, unsigned char, 4)
EMU_VECTOR4(int4, int, 16)
EMU_VECTOR4(uint4, unsigned, 16)
EMU_VECTOR4(float4, float, 16)
#undef EMU_VECTOR2
#undef EMU_VECTOR4
struct int3 {
    int x, y, z;
};
struct uint3 {
    unsigned x, y, z;
};
struct float3 {
    float x, y, z;
};
__forceinline__ int3 make_int3(int x, int y, int z) { return int3{x, y, z}; }
__forceinline__ uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return uint3{x, y, z}; }
__forceinline__ float3 make_float3(float x, float y, float z) { return float3{x, y, z}; }

#include "device_math.h"

// The default arguments give the line of the call.
__forceinline__ void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    emu::sync_threads(emu::Site{file, line});
}

__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(),
                                int line = __builtin_LINE()) {
    emu::sync_warp(mask, emu::Site{file, line});
}

namespace emu {
template <class T> __forceinline__ T shuffle_value(Shuffle kind, unsigned mask, T v, int arg, int width, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    return bit_cast<T>(static_cast<Bits>(shuffle(kind, mask, bit_cast<Bits>(v), arg, width, site)));
}
}  // namespace emu

#define EMU_SHUFFLE(name, kind, Arg)                                                                         \
    template <class T>                                                                                       \
    __forceinline__ T name(unsigned mask, T v, Arg arg, int width = 32, const char* file = __builtin_FILE(), \
                           int line = __builtin_LINE()) {                                                    \
        return emu::shuffle_value(kind, mask, v, static_cast<int>(arg), width, emu::Site{file, line});       \
    }
EMU_SHUFFLE(__shfl_sync, emu::Shuffle::kIndex, int)
EMU_SHUFFLE(__shfl_xor_sync, emu::Shuffle::kXor, int)
EMU_SHUFFLE(__shfl_down_sync, emu::Shuffle::kDown, unsigned)
EMU_SHUFFLE(__shfl_up_sync, emu::Shuffle::kUp, unsigned)
#undef EMU_SHUFFLE

__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                                       int line = __builtin_LINE()) {
    return emu::ballot(mask, predicate != 0, emu::Site{file, line});
}
__forceinline__ int __any_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                               int line = __builtin_LINE()) {
    return emu::ballot(mask, predicate != 0, emu::Site{file, line}) != 0;
}
__forceinline__ int __all_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                               int line = __builtin_LINE()) {
    return emu::ballot(mask, predicate != 0, emu::Site{file, line}) == 0xffffffffu;
}
