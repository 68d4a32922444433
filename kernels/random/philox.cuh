// philox.cuh: the random numbers of src/random/philox.rs, bit for bit; the addressing is described there.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10).
#pragma once

#include "elementary.cuh"

// One stream: key, and words 1 to 3 of the counter.
struct PhiloxStream {
    unsigned key[2];
    unsigned address[3];
};

// Block number `index` of a stream: four random words.
__device__ __forceinline__ uint4 philox_block(const PhiloxStream& stream, unsigned index) {
    unsigned k0 = stream.key[0], k1 = stream.key[1];
    uint4 c = make_uint4(index, stream.address[0], stream.address[1], stream.address[2]);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned high0 = __umulhi(c.x, 0xD2511F53u), low0 = c.x * 0xD2511F53u;
        const unsigned high1 = __umulhi(c.z, 0xCD9E8D57u), low1 = c.z * 0xCD9E8D57u;
        c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// Two normal numbers from two words (Box-Muller).
__device__ __forceinline__ void philox_normal_pair(unsigned length, unsigned turn, float& first, float& second) {
    constexpr float kUnit = 1.0f / (1u << 24);
    const Rounded u = Rounded{static_cast<float>((length >> 8) + 1u)} * kUnit;
    const Rounded r{__fsqrt_rn((Rounded{-2.0f} * ln_rounded(u)).v)};
    Rounded sin, cos;
    sin_cos_turn(Rounded{static_cast<float>(turn >> 8)} * kUnit, sin, cos);
    first = (r * cos).v;
    second = (r * sin).v;
}

// Four normal numbers from block `index`.
__device__ __forceinline__ void philox_normals(const PhiloxStream& stream, unsigned index, float (&out)[4]) {
    const uint4 w = philox_block(stream, index);
    philox_normal_pair(w.x, w.y, out[0], out[1]);
    philox_normal_pair(w.z, w.w, out[2], out[3]);
}
