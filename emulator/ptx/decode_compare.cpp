// decode_compare.cpp: comparisons, selections and predicates.
#include "decoder.h"
#include "lanes.h"

namespace ptx {

namespace {

// Predicates: one bit a lane. flag: 0 and, 1 or, 2 xor, 3 not, 4 mov.
void predicate(Warp& w, const Inst& i) {
    const u32 a = *reg<u32>(w, i.a), b = *reg<u32>(w, i.b);
    const u32 v = i.flag == 0 ? (a & b) : i.flag == 1 ? (a | b) : i.flag == 2 ? (a ^ b) : i.flag == 3 ? ~a : a;
    u32* d = reg<u32>(w, i.d);
    *d = (*d & ~w.m) | (v & w.m);
}

template <class T> void selp(Warp& w, const Inst& i) {
    const u32 p = *reg<u32>(w, i.c);
    const T *a = reg<T>(w, i.a), *b = reg<T>(w, i.b);
    T* d = reg<T>(w, i.d);
    const u32 m = w.m;
    LANES {
        const T v = (p >> l & 1) ? a[l] : b[l];
        d[l] = (m >> l & 1) ? v : d[l];
    }
}

// setp: d, e (if imm & 1) = comparison; imm >> 1: 0 none, 1 and, 2 or, 3 xor with predicate c, negated by flag.
template <class T, class F> inline void setp(Warp& w, const Inst& i, F f) {
    const T *a = reg<T>(w, i.a), *b = reg<T>(w, i.b);
    u32 v = 0;
    LANES v |= static_cast<u32>(f(a[l], b[l])) << l;
    u32 q = ~v;
    if (i.imm >> 1) {
        u32 c = *reg<u32>(w, i.c);
        if (i.flag) c = ~c;
        const auto with = [&](u32 x) { return (i.imm >> 1) == 1 ? (x & c) : (i.imm >> 1) == 2 ? (x | c) : (x ^ c); };
        v = with(v);
        q = with(q);
    }
    u32* d = reg<u32>(w, i.d);
    *d = (*d & ~w.m) | (v & w.m);
    if (i.imm & 1) {
        u32* e = reg<u32>(w, i.e);
        *e = (*e & ~w.m) | (q & w.m);
    }
}
#define SETP(expr) +[](Warp& w, const Inst& i) { setp<T>(w, i, [](T a, T b) -> bool { return expr; }); }
template <class T> Run setp_int(const string& c) {
    if (c == "eq") return SETP(a == b);
    if (c == "ne") return SETP(a != b);
    if (c == "lt" || c == "lo") return SETP(a < b);
    if (c == "le" || c == "ls") return SETP(a <= b);
    if (c == "gt" || c == "hi") return SETP(a > b);
    if (c == "ge" || c == "hs") return SETP(a >= b);
    return nullptr;
}
template <class T> Run setp_float(const string& c) {
    if (c == "eq") return SETP(a == b);
    if (c == "ne") return SETP(a < b || a > b);
    if (c == "lt") return SETP(a < b);
    if (c == "le") return SETP(a <= b);
    if (c == "gt") return SETP(a > b);
    if (c == "ge") return SETP(a >= b);
    if (c == "equ") return SETP(!(a < b || a > b));
    if (c == "neu") return SETP(a != b);
    if (c == "ltu") return SETP(!(a >= b));
    if (c == "leu") return SETP(!(a > b));
    if (c == "gtu") return SETP(!(a <= b));
    if (c == "geu") return SETP(!(a < b));
    if (c == "num") return SETP(a == a && b == b);
    if (c == "nan") return SETP(a != a || b != b);
    return nullptr;
}

}  // namespace

void Decoder::compare() {
    const Type t = last();
    if (mods_.empty()) throw std::runtime_error("comparison");
    const string c = mods_[0];
    mods_.erase(mods_.begin());
    Inst i;
    const int boolean = opt("and") ? 1 : opt("or") ? 2 : opt("xor") ? 3 : 0;
    need(boolean ? 4 : 3);
    const size_t bar = ops_[0].find('|');
    i.d = dst(trim(ops_[0].substr(0, bar)), 1);
    if (bar != string::npos) i.e = dst(trim(ops_[0].substr(bar + 1)), 1);
    i.imm = (boolean << 1) | (bar != string::npos);
    i.a = src(ops_[1], t.bits, t.kind);
    i.b = src(ops_[2], t.bits, t.kind);
    if (boolean) {
        const bool negated = ops_[3][0] == '!';
        i.flag = negated;
        i.c = src(negated ? ops_[3].substr(1) : ops_[3], 1);
    }
    if (t.kind == 'b' && c != "eq" && c != "ne") throw std::runtime_error("order of bits");
    if (t.kind == 'f')
        i.run = t.bits == 32 ? setp_float<float>(c) : setp_float<double>(c);
    else if (t.kind == 's')
        i.run = t.bits == 16 ? setp_int<s16>(c) : t.bits == 32 ? setp_int<s32>(c) : setp_int<s64>(c);
    else
        i.run = t.bits == 16 ? setp_int<u16>(c) : t.bits == 32 ? setp_int<u32>(c) : setp_int<u64>(c);
    emit(i);
}

void Decoder::select() {
    need(4);
    const Type t = last();
    Inst i;
    i.a = src(ops_[1], t.bits, t.kind);
    i.b = src(ops_[2], t.bits, t.kind);
    i.c = src(ops_[3], 1);
    i.d = dst(ops_[0], t.bits);
    i.run = t.bits == 16 ? selp<u16> : t.bits == 32 ? selp<u32> : selp<u64>;
    emit(i);
}

void Decoder::predicates(const string& op) {
    Inst i;
    i.flag = op == "and" ? 0 : op == "or" ? 1 : op == "xor" ? 2 : op == "not" ? 3 : op == "mov" ? 4 : 9;
    if (i.flag == 9) throw std::runtime_error("on predicates");
    const bool is_unary = i.flag >= 3;
    need(is_unary ? 2 : 3);
    i.a = src(ops_[1], 1);
    i.b = is_unary ? i.a : src(ops_[2], 1);
    i.d = dst(ops_[0], 1);
    i.run = predicate;
    emit(i);
}

}  // namespace ptx
