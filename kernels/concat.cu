// concat.cu: a concatenation, and its gradient: rows of several tensors that lie side by side in the rows of a wider
// one.
//
//   forward:  whole[r pitch + start_i + k] = part_i[r len_i + k],  r < rows, k < len_i
//   backward: part_i[r len_i + k] = (or +=) whole[r pitch + start_i + k]
//
// One launch for all parts listed, each way; a part that lies in `whole` already, or whose gradient nobody wants, is
// not listed. Channels (bf16): a row is a voxel. Batch (f32): one row. A thread takes 8 neighbouring elements of a part
// where lengths and addresses of all parts allow, else 1; it counts through the parts of a row, then through the rows.
// Grid: ceil(rows (len_0 + len_1 + ...) / 2048). Traffic: every listed element read and written once; read once more if
// added to.
#include "lang/vec.cuh"

constexpr int kMaxParts = 12;  // MAX_OPERANDS of src/backend/memory.rs

template <class T> struct ConcatParams {
    T* whole;
    T* part[kMaxParts];
    long long len[kMaxParts];    // elements of a row of each part
    long long start[kMaxParts];  // where they begin in a row of `whole`
    long long rows;
    long long pitch;  // elements of a row of `whole`
    int add[kMaxParts];
    int count;  // of parts
    int reserved;
};

using ConcatBf16Params = ConcatParams<bf16>;
using ConcatF32Params = ConcatParams<float>;

template <int kW, bool kBackward, class T> __device__ __forceinline__ void copy_parts(const ConcatParams<T>& p) {
    long long pieces = 0;  // of a row
    for (int i = 0; i < p.count; ++i) pieces += p.len[i] / kW;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.rows * pieces; i += step) {
        const Quotient at = divide(i, pieces);
        long long k = at.remainder * kW;
        int part = 0;
        while (k >= p.len[part]) k -= p.len[part++];
        T* const narrow = p.part[part] + at.quotient * p.len[part] + k;
        T* const wide = p.whole + at.quotient * p.pitch + p.start[part] + k;
        float v[kW];
        load(kBackward ? wide : narrow, v);
        put(kBackward ? narrow : wide, v, kBackward && p.add[part] != 0);
    }
}

template <bool kBackward, class T> __device__ __forceinline__ void copy(const ConcatParams<T>& p) {
    long long sizes = p.pitch;
    bool wide = aligned16(p.whole);
    for (int i = 0; i < p.count; ++i) {
        sizes |= p.len[i] | p.start[i];
        wide = wide && aligned16(p.part[i]);
    }
    if (wide && (sizes & 7) == 0) {
        copy_parts<8, kBackward>(p);
    } else {
        copy_parts<1, kBackward>(p);
    }
}

KERNEL(concat_fwd_bf16, ConcatBf16Params, 256, 4) { copy<false>(p); }

KERNEL(concat_bwd_bf16, ConcatBf16Params, 256, 4) { copy<true>(p); }

KERNEL(concat_fwd_f32, ConcatF32Params, 256, 4) { copy<false>(p); }

KERNEL(concat_bwd_f32, ConcatF32Params, 256, 4) { copy<true>(p); }
