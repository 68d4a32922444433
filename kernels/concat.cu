// concat.cu: one part of a concatenation: rows of `len` elements, copied or added from one pitch to another.
//
//   to[r to_pitch + k] = (or +=) from[r from_pitch + k],  r < rows, k < len
//
// Forward: a launch for each input; backward: a launch for each wanted gradient. Channels (bf16): a row is a voxel.
// Batch (f32): one row. One thread to 8 elements where row and pitches allow. Traffic: 1 read, 1 write.
#include "vec.cuh"

template <class T> struct CopyParams {
    const T* from;
    T* to;
    long long rows;
    long long len;
    long long from_first, to_first;  // elements before the first row
    long long from_pitch, to_pitch;
    int add;
    int reserved;
};

using CopyBf16Params = CopyParams<bf16>;
using CopyF32Params = CopyParams<float>;

template <int kW, class T> __device__ __forceinline__ void copy_rows(const CopyParams<T>& p) {
    const long long pieces = p.len / kW, step = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.rows * pieces; i += step) {
        const Quotient at = divide(i, pieces);
        const long long k = at.remainder * kW;
        float v[kW];
        load(p.from + p.from_first + at.quotient * p.from_pitch + k, v);
        put(p.to + p.to_first + at.quotient * p.to_pitch + k, v, p.add != 0);
    }
}

template <class T> __device__ __forceinline__ void copy(const CopyParams<T>& p) {
    const bool wide = ((p.len | p.from_pitch | p.to_pitch) & 7) == 0 &&
                      aligned16(p.from + p.from_first, p.to + p.to_first);
    if (wide) {
        copy_rows<8>(p);
    } else {
        copy_rows<1>(p);
    }
}

KERNEL(concat_bf16, CopyBf16Params, 256, 4) { copy(p); }

KERNEL(concat_f32, CopyF32Params, 256, 4) { copy(p); }
