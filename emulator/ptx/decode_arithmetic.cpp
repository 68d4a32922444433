// decode_arithmetic.cpp: arithmetic on floats and whole numbers, bit fields.
#include "decoder.h"
#include "lanes.h"
#include "numbers.h"

namespace ptx {

#define INTS(expr)                                                      \
    (t.bits == 16   ? (t.kind == 's' ? BIN(s16, expr) : BIN(u16, expr)) \
     : t.bits == 32 ? (t.kind == 's' ? BIN(s32, expr) : BIN(u32, expr)) \
                    : (t.kind == 's' ? BIN(s64, expr) : BIN(u64, expr)))
// Wraps: computed without a sign.
#define WRAPS(expr) (t.bits == 16 ? BIN(u16, expr) : t.bits == 32 ? BIN(u32, expr) : BIN(u64, expr))
// Only the lanes that take part: divisions trap.
#define INTS_SLOW(expr)                                                                         \
    (t.bits == 16   ? (t.kind == 's' ? SLOW2(s16, s16, s16, expr) : SLOW2(u16, u16, u16, expr)) \
     : t.bits == 32 ? (t.kind == 's' ? SLOW2(s32, s32, s32, expr) : SLOW2(u32, u32, u32, expr)) \
                    : (t.kind == 's' ? SLOW2(s64, s64, s64, expr) : SLOW2(u64, u64, u64, expr)))

void Decoder::arithmetic(const string& op) {
    const Type t = last();
    if (t.kind == 'p') return predicates(op);
    if (t.kind == 'h') throw std::runtime_error("arithmetic of 16-bit floats");
    if (t.kind == 'f') return t.bits == 64 ? floats64(op) : floats32(op);
    if (opt("wide")) return multiply_wide(op, t);
    if (!fields(op, t)) whole(op, t);
}

void Decoder::floats64(const string& op) {
    opt("rn");
    const size_t n = ops_.size();
    Inst i;
    for (size_t k = 1; k < n; ++k) (k == 1 ? i.a : k == 2 ? i.b : i.c) = src(ops_[k], 64, 'f');
    i.d = dst(ops_[0], 64);
    if (op == "add" && n == 3) i.run = BIN(double, a + b);
    if (op == "sub" && n == 3) i.run = BIN(double, a - b);
    if (op == "mul" && n == 3) i.run = BIN(double, a* b);
    if (op == "div" && n == 3) i.run = BIN(double, a / b);
    if (op == "min" && n == 3) i.run = BIN(double, fmin_(a, b));
    if (op == "max" && n == 3) i.run = BIN(double, fmax_(a, b));
    if ((op == "fma" || op == "mad") && n == 4) i.run = TRI(double, fma_(a, b, c));
    if (op == "neg" && n == 2) i.run = UN(double, double, -a);
    if (op == "abs" && n == 2) i.run = UN(double, double, std::fabs(a));
    if (op == "sqrt" && n == 2) i.run = UN(double, double, std::sqrt(a));
    if (op == "rcp" && n == 2) i.run = UN(double, double, 1.0 / a);
    if (op == "copysign" && n == 3) i.run = BIN(double, std::copysign(b, a));
    emit(i);
}

// An f32 operand, flushed to zero first where the instruction says so.
u32 Decoder::flushed(const string& t, bool flush) {
    const u32 r = src(t, 32, 'f');
    if (!flush) return r;
    Inst i;
    i.a = r;
    i.d = allocate(32);
    i.run = UN(float, float, ftz(a));
    emit(i);
    return i.d;
}

void Decoder::floats32(const string& op) {
    const bool flush = opt("ftz"), saturate = opt("sat"), approximate = opt("approx") || opt("full");
    const bool rz = opt("rz"), rm = opt("rm"), rp = opt("rp");
    opt("rn");
    Inst i;
    for (size_t k = 1; k < ops_.size(); ++k) (k == 1 ? i.a : k == 2 ? i.b : i.c) = flushed(ops_[k], flush);
    i.d = dst(ops_[0], 32);
    i.run = rz || rm || rp ? floats32_rounded(op, rz, rm) : floats32_near(op, approximate);
    emit(i);
    const auto after = [&](Run run) {
        Inst more;
        more.a = more.d = i.d;
        more.run = run;
        emit(more);
    };
    if (flush) after(UN(float, float, ftz(a)));
    if (saturate) after(UN(float, float, sat(a)));
}

Run Decoder::floats32_rounded(const string& op, bool rz, bool rm) const {
#define MODES(macro, call) (rz ? macro(call<FE_TOWARDZERO>) : rm ? macro(call<FE_DOWNWARD>) : macro(call<FE_UPWARD>))
#define ADD(f) SLOW2(float, float, float, f(a, b))
#define SUB(f) SLOW2(float, float, float, f(a, -b))
#define FMA(f) SLOW3(float, float, float, float, f(a, b, c))
    const size_t n = ops_.size();
    if (n == 3 && op == "add") return MODES(ADD, add_mode);
    if (n == 3 && op == "sub") return MODES(SUB, add_mode);
    if (n == 3 && op == "mul") return MODES(ADD, mul_mode);
    if (n == 4 && (op == "fma" || op == "mad")) return MODES(FMA, fma_mode);
#undef MODES
#undef ADD
#undef SUB
#undef FMA
    return nullptr;
}

Run Decoder::floats32_near(const string& op, bool approximate) const {
    const size_t n = ops_.size();
    if (n == 3 && op == "add") return BIN(float, cn(a + b));
    if (n == 3 && op == "sub") return BIN(float, cn(a - b));
    if (n == 3 && op == "mul") return BIN(float, cn(a * b));
    if (n == 4 && (op == "fma" || op == "mad")) return TRI(float, cn(fma_(a, b, c)));
    if (n == 3 && op == "min") return BIN(float, fmin_(a, b));
    if (n == 3 && op == "max") return BIN(float, fmax_(a, b));
    if (n == 3 && op == "copysign") return BIN(float, std::copysign(b, a));  // sign of a, value of b
    if (n == 2 && op == "neg") return UN(float, float, -a);
    if (n == 2 && op == "abs") return UN(float, float, std::fabs(a));
    if (!approximate) {
        if (n == 3 && op == "div") return BIN(float, cn(a / b));
        if (n == 2 && op == "sqrt") return UN(float, float, cn(std::sqrt(a)));
        if (n == 2 && op == "rcp") return UN(float, float, cn(1.0f / a));
        return nullptr;
    }
    if (n == 3 && op == "div")
        return SLOW2(float, float, float, approx(static_cast<double>(a) / static_cast<double>(b), a));
#define NEAR(name, expr) \
    if (n == 2 && op == name) return SLOW1(float, float, approx(expr, a));
    NEAR("sqrt", std::sqrt(static_cast<double>(a)))
    NEAR("rcp", 1.0 / static_cast<double>(a))
    NEAR("rsqrt", 1.0 / std::sqrt(static_cast<double>(a)))
    NEAR("ex2", std::exp2(static_cast<double>(a)))
    NEAR("lg2", std::log2(static_cast<double>(a)))
    NEAR("sin", std::sin(static_cast<double>(a)))
    NEAR("cos", std::cos(static_cast<double>(a)))
    NEAR("tanh", std::tanh(static_cast<double>(a)))
#undef NEAR
    return nullptr;
}

void Decoder::multiply_wide(const string& op, const Type& t) {
    const bool adds = op == "mad", s = t.kind == 's';
    if (!adds && op != "mul") throw std::runtime_error("wide");
    need(adds ? 4 : 3);
    Inst i;
    i.a = src(ops_[1], t.bits);
    i.b = src(ops_[2], t.bits);
    if (adds) i.c = src(ops_[3], 2 * t.bits);
    i.d = dst(ops_[0], 2 * t.bits, s);
    if (t.bits == 16 && !adds) i.run = s ? BIN2(s32, s16, s16, s32{a} * s32{b}) : BIN2(u32, u16, u16, u32{a} * u32{b});
    if (t.bits == 32 && !adds) i.run = s ? BIN2(s64, s32, s32, s64{a} * s64{b}) : BIN2(u64, u32, u32, u64{a} * u64{b});
    if (t.bits == 16 && adds)
        i.run = s ? TRI3(u32, s16, s16, u32, static_cast<u32>(s32{a} * s32{b}) + c)
                  : TRI3(u32, u16, u16, u32, u32{a} * u32{b} + c);
    if (t.bits == 32 && adds)
        i.run = s ? TRI3(u64, s32, s32, u64, static_cast<u64>(s64{a} * s64{b}) + c)
                  : TRI3(u64, u32, u32, u64, u64{a} * u64{b} + c);
    emit(i);
}

void Decoder::whole(const string& op, const Type& t) {
    const size_t n = ops_.size();
    const bool multiplies = op == "mul" || op == "mad", high = multiplies && opt("hi");
    if (multiplies && !high && !opt("lo")) throw std::runtime_error("half");
    const bool shifts = op == "shl" || op == "shr", counts = op == "popc" || op == "clz";
    Inst i;
    for (size_t k = 1; k < n; ++k) (k == 1 ? i.a : k == 2 ? i.b : i.c) = src(ops_[k], shifts && k == 2 ? 32 : t.bits);
    i.d = dst(ops_[0], counts ? 32 : t.bits, t.kind == 's');
    i.run = n == 2 ? whole_one(op, t) : n == 3 ? whole_two(op, t, high) : n == 4 ? whole_three(op, t, high) : nullptr;
    emit(i);
}

Run Decoder::whole_one(const string& op, const Type& t) {
    if (op == "neg")
        return t.bits == 16 ? UN(u16, u16, 0 - a) : t.bits == 32 ? UN(u32, u32, 0 - a) : UN(u64, u64, 0 - a);
    if (op == "abs" && t.bits == 32) return UN(u32, s32, a < 0 ? 0 - static_cast<u32>(a) : static_cast<u32>(a));
    if (op == "abs" && t.bits == 64) return UN(u64, s64, a < 0 ? 0 - static_cast<u64>(a) : static_cast<u64>(a));
    if (op == "not") return t.bits == 16 ? UN(u16, u16, ~a) : t.bits == 32 ? UN(u32, u32, ~a) : UN(u64, u64, ~a);
    if (op == "popc") return t.bits == 32 ? UN(u32, u32, __builtin_popcount(a)) : UN(u32, u64, __builtin_popcountll(a));
    if (op == "clz")
        return t.bits == 32 ? UN(u32, u32, a == 0 ? 32 : __builtin_clz(a))
                            : UN(u32, u64, a == 0 ? 64 : __builtin_clzll(a));
    if (op == "brev" && t.bits == 32) {
        return +[](Warp& w, const Inst& x) {
            each1<u32, u32>(w, x, [](u32 a) {
                u32 r = 0;
                for (u32 k = 0; k < 32; ++k) r |= (a >> k & 1) << (31 - k);
                return r;
            });
        };
    }
    return nullptr;
}

Run Decoder::whole_two(const string& op, const Type& t, bool high) {
    const bool s = t.kind == 's';
    if (op == "add") return WRAPS(a + b);
    if (op == "sub") return WRAPS(a - b);
    if (op == "and") return WRAPS(a & b);
    if (op == "or") return WRAPS(a | b);
    if (op == "xor") return WRAPS(a ^ b);
    if (op == "div") return INTS_SLOW(div_(a, b));
    if (op == "rem") return INTS_SLOW(rem_(a, b));
    if (op == "min") return INTS(a < b ? a : b);
    if (op == "max") return INTS(a > b ? a : b);
    if (op == "mul" && !high)
        return t.bits == 16 ? BIN(u16, u32{a} * u32{b}) : t.bits == 32 ? BIN(u32, a * b) : BIN(u64, a * b);
    if (op == "mul" && t.bits == 16) return s ? BIN(s16, (s32{a} * s32{b}) >> 16) : BIN(u16, (u32{a} * u32{b}) >> 16);
    if (op == "mul" && t.bits == 32) return s ? BIN(s32, (s64{a} * s64{b}) >> 32) : BIN(u32, (u64{a} * u64{b}) >> 32);
    if (op == "mul") return s ? BIN(s64, (static_cast<s128>(a) * b) >> 64) : BIN(u64, (static_cast<u128>(a) * b) >> 64);
    if (op == "shl") {
        return t.bits == 16   ? BIN2(u16, u16, u32, b > 15 ? 0 : a << b)
               : t.bits == 32 ? BIN2(u32, u32, u32, b > 31 ? 0 : a << b)
                              : BIN2(u64, u64, u32, b > 63 ? 0 : a << b);
    }
    if (op == "shr" && s) {
        return t.bits == 16   ? BIN2(s16, s16, u32, a >> (b > 15 ? 15 : b))
               : t.bits == 32 ? BIN2(s32, s32, u32, a >> (b > 31 ? 31 : b))
                              : BIN2(s64, s64, u32, a >> (b > 63 ? 63 : b));
    }
    if (op == "shr") {
        return t.bits == 16   ? BIN2(u16, u16, u32, b > 15 ? 0 : a >> b)
               : t.bits == 32 ? BIN2(u32, u32, u32, b > 31 ? 0 : a >> b)
                              : BIN2(u64, u64, u32, b > 63 ? 0 : a >> b);
    }
    return nullptr;
}

Run Decoder::whole_three(const string& op, const Type& t, bool high) {
    if (op != "mad") return nullptr;
    if (!high)
        return t.bits == 16 ? TRI(u16, u32{a} * u32{b} + c) : t.bits == 32 ? TRI(u32, a * b + c) : TRI(u64, a * b + c);
    if (t.bits != 32) return nullptr;
    if (t.kind == 's') return TRI3(u32, s32, s32, u32, static_cast<u32>((s64{a} * s64{b}) >> 32) + c);
    return TRI(u32, ((u64{a} * u64{b}) >> 32) + c);
}

namespace {

template <class T> void insert_field(Warp& w, const Inst& x) {
    const u32 *e = reg<u32>(w, x.e), *c = reg<u32>(w, x.c);
    T *d = reg<T>(w, x.d), *a = reg<T>(w, x.a), *b = reg<T>(w, x.b);
    ACTIVE d[l] = bfi<T>(a[l], b[l], c[l], e[l]);
}

// Any function of three bits, by its table in imm.
void lop3(Warp& w, const Inst& x) {
    u32 *d = reg<u32>(w, x.d), *a = reg<u32>(w, x.a), *b = reg<u32>(w, x.b), *c = reg<u32>(w, x.c);
    ACTIVE {
        u32 v = 0;
        for (u32 k = 0; k < 8; ++k) {
            if (x.imm >> k & 1) v |= (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
        }
        d[l] = v;
    }
}

}  // namespace

// Instructions whose operands are not all of one type. False: it is none of them.
bool Decoder::fields(const string& op, const Type& t) {
    if (op != "bfi" && op != "bfe" && op != "prmt" && op != "shf" && op != "lop3") return false;
    const bool is_insert = op == "bfi";
    if (t.bits != 32 && !is_insert) throw std::runtime_error("type");
    need(is_insert || op == "lop3" ? 5 : 4);
    Inst i;
    i.a = src(ops_[1], t.bits), i.b = src(ops_[2], is_insert ? t.bits : 32), i.c = src(ops_[3], 32);
    if (is_insert) {
        i.e = src(ops_[4], 32);
        i.run = t.bits == 32 ? insert_field<u32> : insert_field<u64>;
    } else if (op == "bfe" && t.kind == 'u') {
        i.run = TRI(u32, (b & 255) > 31 || (c & 255) == 0
                             ? 0
                             : (a >> (b & 255)) & ((c & 255) > 31 ? kAll : (1u << (c & 255)) - 1));
    } else if (op == "prmt") {
        i.run = TRI(u32, prmt(a, b, c));
    } else if (op == "shf") {
        const bool left = opt("l"), right = opt("r"), wrap = opt("wrap"), clamp = opt("clamp");
        if (left == right || wrap == clamp) throw std::runtime_error("mode");
        if (left)
            i.run = wrap ? TRI(u32, ((u64{b} << 32 | a) << (c & 31)) >> 32)
                         : TRI(u32, ((u64{b} << 32 | a) << (c > 32 ? 32 : c)) >> 32);
        else
            i.run = wrap ? TRI(u32, (u64{b} << 32 | a) >> (c & 31)) : TRI(u32, (u64{b} << 32 | a) >> (c > 32 ? 32 : c));
    } else if (op == "lop3") {
        u64 table;
        if (!immediate(ops_[4], &table)) throw std::runtime_error("table");
        i.imm = static_cast<s64>(table);
        i.run = lop3;
    }
    i.d = dst(ops_[0], t.bits, t.kind == 's');
    emit(i);
    return true;
}

}  // namespace ptx
