// warp_ops.cpp: ldmatrix, mma, shfl, vote. Fragments and lane numbers are those of the PTX ISA manual.
#include <algorithm>

#include "../result.h"
#include "lanes.h"
#include "numbers.h"

namespace ptx {

// ldmatrix, m8n8 of b16. PTX ISA: thread l gives the row address of row l % 8 of matrix l / 8; without .trans, thread l
// receives elements 2 (l % 4) and the next of row l / 4; with .trans the matrix is loaded in column-major order.
void ldmatrix(Warp& w, const Inst& i) {
    const u32* a = reg<u32>(w, i.a);
    const u32 n = i.count;
    u16 rows[4][8][8];
    for (u32 m = 0; m < n; ++m) {
        for (u32 r = 0; r < 8; ++r) {
            const u32 at = a[m * 8 + r] + static_cast<u32>(i.imm);
            check_aligned(at, 16);
            memcpy(rows[m][r], shared_read(w, i, at, 16), 16);
        }
    }
    emu::current.counters.shared_moved += static_cast<u64>(n) * 128;
    // A phase moves 8 rows of 16 bytes; distinct rows on the same four banks take another access each.
    for (u32 m = 0; m < n; ++m) {
        u32 row[8], most = 1, on[8] = {};
        for (u32 r = 0; r < 8; ++r) {
            row[r] = (a[m * 8 + r] + static_cast<u32>(i.imm)) / 16;
            bool seen = false;
            for (u32 q = 0; q < r; ++q) seen |= row[q] == row[r];
            if (!seen) most = std::max(most, ++on[row[r] % 8]);
        }
        emu::current.counters.bank_phases += 1;
        emu::current.counters.bank_wavefronts += most;
    }
    for (u32 m = 0; m < n; ++m) {
        u32* d = reg<u32>(w, i.v[m]);
        LANES {
            const u32 g = l >> 2, t = l & 3;
            const u16 x = i.flag ? rows[m][2 * t][g] : rows[m][g][2 * t];
            const u16 y = i.flag ? rows[m][2 * t + 1][g] : rows[m][g][2 * t + 1];
            d[l] = static_cast<u32>(x) | static_cast<u32>(y) << 16;
        }
    }
}

namespace {

// EMU_PTX_MMA=truncate: sums as tensor cores are known to form them. Products are exact; per half of k (8 terms) they
// and the accumulator are aligned to the largest exponent, cut below 2 more bits than f32 has, added, and cut to f32.
float truncated_sum(float c, const float* a, const float* b, u32 count, u32 stride) {
    double terms[17];
    u32 n = 0;
    terms[n++] = static_cast<double>(c);
    for (u32 k = 0; k < count; ++k) terms[n++] = static_cast<double>(a[k]) * static_cast<double>(b[k * stride]);
    double largest = 0.0;
    for (u32 k = 0; k < n; ++k) {
        if (!std::isfinite(terms[k])) {
            double sum = 0.0;
            for (u32 j = 0; j < n; ++j) sum += terms[j];
            return cn(static_cast<float>(sum));
        }
        largest = std::max(largest, std::fabs(terms[k]));
    }
    if (largest == 0.0) return static_cast<float>(terms[0] + 0.0);
    int exponent;
    std::frexp(largest, &exponent);  // largest < 2^exponent
    const double unit = std::ldexp(1.0, exponent - 26);
    double sum = 0.0;
    for (u32 k = 0; k < n; ++k) sum += std::trunc(terms[k] / unit) * unit;
    // towards zero
    float out = static_cast<float>(sum);
    if (std::fabs(static_cast<double>(out)) > std::fabs(sum)) out = std::nextafter(out, 0.0f);
    return out;
}

}  // namespace

// mma.m16n8k16, bf16, f32. PTX ISA "Matrix Fragments for mma.m16n8k16": groupID = lane / 4, tig = lane % 4.
// A element i: row groupID for i = 0, 1, 4, 5, else groupID + 8; column 2 tig + (i & 1), + 8 for i >= 4.
// B element i: row 2 tig + (i & 1), + 8 for i >= 2; column groupID.  C element i: row groupID, + 8 for i >= 2; column 2
// tig + (i & 1).
void mma16816(Warp& w, const Inst& i) {
    alignas(64) float a[16][16], b[16][8];
    alignas(64) double c[16][8];
    const u32 ra[4] = {i.a, i.b, i.c, i.d}, rb[2] = {i.e, i.f};
    for (u32 r = 0; r < 4; ++r) {
        const u32* x = reg<u32>(w, ra[r]);
        LANES {
            for (u32 h = 0; h < 2; ++h) {
                const u32 e = 2 * r + h;
                const u32 row = (l >> 2) + ((e < 2 || (e >= 4 && e < 6)) ? 0 : 8),
                          col = 2 * (l & 3) + (e & 1) + (e >= 4 ? 8 : 0);
                a[row][col] = from_bf16(static_cast<u16>(h ? x[l] >> 16 : x[l]));
            }
        }
    }
    for (u32 r = 0; r < 2; ++r) {
        const u32* x = reg<u32>(w, rb[r]);
        LANES {
            for (u32 h = 0; h < 2; ++h) {
                const u32 e = 2 * r + h;
                b[2 * (l & 3) + (e & 1) + (e >= 2 ? 8 : 0)][l >> 2] =
                    from_bf16(static_cast<u16>(h ? x[l] >> 16 : x[l]));
            }
        }
    }
    for (u32 e = 0; e < 4; ++e) {
        const float* x = reg<float>(w, i.v[4 + e]);
        LANES c[(l >> 2) + (e >= 2 ? 8 : 0)][2 * (l & 3) + (e & 1)] = static_cast<double>(x[l]);
    }
    emu::current.counters.mma += 1;
    float out[16][8];
    if (options().mma_truncates) {
        for (u32 r = 0; r < 16; ++r) {
            for (u32 n = 0; n < 8; ++n) {
                float sum = static_cast<float>(c[r][n]);
                for (u32 half = 0; half < 2; ++half) sum = truncated_sum(sum, &a[r][8 * half], &b[8 * half][n], 8, 8);
                out[r][n] = sum;
            }
        }
    } else {
        for (u32 r = 0; r < 16; ++r) {
            double sum[8];
            for (u32 n = 0; n < 8; ++n) sum[n] = c[r][n];
            for (u32 k = 0; k < 16; ++k) {
                const double x = static_cast<double>(a[r][k]);
                for (u32 n = 0; n < 8; ++n) sum[n] += x * static_cast<double>(b[k][n]);
            }
            for (u32 n = 0; n < 8; ++n) out[r][n] = cn(static_cast<float>(sum[n]));
        }
    }
    for (u32 e = 0; e < 4; ++e) {
        float* x = reg<float>(w, i.v[e]);
        LANES x[l] = out[(l >> 2) + (e >= 2 ? 8 : 0)][2 * (l & 3) + (e & 1)];
    }
}

// shfl.sync, by the pseudo code of the PTX ISA.
void shuffle(Warp& w, const Inst& i) {
    const u32 *a = reg<u32>(w, i.a), *b = reg<u32>(w, i.b), *c = reg<u32>(w, i.c);
    u32 out[32] = {}, pred = 0;
    ACTIVE {
        const u32 bval = b[l] & 31, cval = c[l] & 31, mask = (c[l] >> 8) & 31;
        const s32 lane = static_cast<s32>(l);
        const s32 high = static_cast<s32>((l & mask) | (cval & ~mask)), low = static_cast<s32>(l & mask);
        s32 j = 0;
        bool p = false;
        if (i.flag == 0) j = lane - static_cast<s32>(bval), p = j >= high;
        if (i.flag == 1) j = lane + static_cast<s32>(bval), p = j <= high;
        if (i.flag == 2) j = lane ^ static_cast<s32>(bval), p = j <= high;
        if (i.flag == 3) j = low | static_cast<s32>(bval & ~mask & 31), p = j <= high;
        if (!p) j = lane;
        if (!(w.m >> j & 1)) fault(emu::kLaunchFailed, "lane %u reads from lane %d, which does not take part", l, j);
        out[l] = a[j];
        pred |= static_cast<u32>(p) << l;
    }
    u32* d = reg<u32>(w, i.d);
    ACTIVE d[l] = out[l];
    if (i.imm) {
        u32* p = reg<u32>(w, i.e);
        *p = (*p & ~w.m) | (pred & w.m);
    }
}

// vote.sync.
void vote(Warp& w, const Inst& i) {
    u32 p = *reg<u32>(w, i.a);
    if (i.imm) p = ~p;
    p &= w.m;
    if (i.flag == 0) {
        u32* d = reg<u32>(w, i.d);
        ACTIVE d[l] = p;
        return;
    }
    const bool yes = i.flag == 1 ? p != 0 : i.flag == 2 ? p == w.m : (p == 0 || p == w.m);
    u32* d = reg<u32>(w, i.d);
    *d = (*d & ~w.m) | (yes ? w.m : 0);
}

}  // namespace ptx
