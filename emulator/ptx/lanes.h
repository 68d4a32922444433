// lanes.h: an instruction for the lanes of a warp. Registers lie lane after lane, so that the host's compiler makes
// vectors of these loops.
#pragma once

#include "machine.h"

namespace ptx {

template <class T> inline T* reg(Warp& w, u32 offset) { return reinterpret_cast<T*>(w.regs + offset); }
#define LANES for (u32 l = 0; l < 32; ++l)
#define ACTIVE \
    for (u32 rest_ = w.m, l = 0; rest_ && (l = static_cast<u32>(__builtin_ctz(rest_)), true); rest_ &= rest_ - 1)

template <class D, class A, class F> inline void each1(Warp& w, const Inst& i, F f) {
    D* d = reg<D>(w, i.d);
    const A* a = reg<A>(w, i.a);
    if (w.m == kAll) {
        LANES d[l] = f(a[l]);
    } else {
        const u32 m = w.m;
        LANES {
            const D v = f(a[l]);
            d[l] = (m >> l & 1) ? v : d[l];
        }
    }
}
template <class D, class A, class B, class F> inline void each2(Warp& w, const Inst& i, F f) {
    D* d = reg<D>(w, i.d);
    const A* a = reg<A>(w, i.a);
    const B* b = reg<B>(w, i.b);
    if (w.m == kAll) {
        LANES d[l] = f(a[l], b[l]);
    } else {
        const u32 m = w.m;
        LANES {
            const D v = f(a[l], b[l]);
            d[l] = (m >> l & 1) ? v : d[l];
        }
    }
}
template <class D, class A, class B, class C, class F> inline void each3(Warp& w, const Inst& i, F f) {
    D* d = reg<D>(w, i.d);
    const A* a = reg<A>(w, i.a);
    const B* b = reg<B>(w, i.b);
    const C* c = reg<C>(w, i.c);
    if (w.m == kAll) {
        LANES d[l] = f(a[l], b[l], c[l]);
    } else {
        const u32 m = w.m;
        LANES {
            const D v = f(a[l], b[l], c[l]);
            d[l] = (m >> l & 1) ? v : d[l];
        }
    }
}
// Only active lanes are computed: for what traps or is slow.
template <class D, class A, class B, class F> inline void lane2(Warp& w, const Inst& i, F f) {
    D* d = reg<D>(w, i.d);
    const A* a = reg<A>(w, i.a);
    const B* b = reg<B>(w, i.b);
    ACTIVE d[l] = f(a[l], b[l]);
}
template <class D, class A, class F> inline void lane1(Warp& w, const Inst& i, F f) {
    D* d = reg<D>(w, i.d);
    const A* a = reg<A>(w, i.a);
    ACTIVE d[l] = f(a[l]);
}
template <class D, class A, class B, class C, class F> inline void lane3(Warp& w, const Inst& i, F f) {
    D* d = reg<D>(w, i.d);
    const A* a = reg<A>(w, i.a);
    const B* b = reg<B>(w, i.b);
    const C* c = reg<C>(w, i.c);
    ACTIVE d[l] = f(a[l], b[l], c[l]);
}

#define UN(D, A, expr) +[](Warp& w, const Inst& i) { each1<D, A>(w, i, [](A a) -> D { return static_cast<D>(expr); }); }
#define BIN(T, expr) \
    +[](Warp& w, const Inst& i) { each2<T, T, T>(w, i, [](T a, T b) -> T { return static_cast<T>(expr); }); }
#define BIN2(D, A, B, expr) \
    +[](Warp& w, const Inst& i) { each2<D, A, B>(w, i, [](A a, B b) -> D { return static_cast<D>(expr); }); }
#define TRI(T, expr) \
    +[](Warp& w, const Inst& i) { each3<T, T, T, T>(w, i, [](T a, T b, T c) -> T { return static_cast<T>(expr); }); }
#define TRI3(D, A, B, C, expr) \
    +[](Warp& w, const Inst& i) { each3<D, A, B, C>(w, i, [](A a, B b, C c) -> D { return static_cast<D>(expr); }); }
#define SLOW1(D, A, expr) \
    +[](Warp& w, const Inst& i) { lane1<D, A>(w, i, [](A a) -> D { return static_cast<D>(expr); }); }
#define SLOW2(D, A, B, expr) \
    +[](Warp& w, const Inst& i) { lane2<D, A, B>(w, i, [](A a, B b) -> D { return static_cast<D>(expr); }); }
#define SLOW3(D, A, B, C, expr) \
    +[](Warp& w, const Inst& i) { lane3<D, A, B, C>(w, i, [](A a, B b, C c) -> D { return static_cast<D>(expr); }); }

}  // namespace ptx
