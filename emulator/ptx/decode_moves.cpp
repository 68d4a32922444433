// decode_moves.cpp: loads, stores, copies and moves.
#include "decoder.h"
#include "lanes.h"

namespace ptx {

namespace {

template <class W, class N> void pack(Warp& w, const Inst& i) {  // W d = {N v[0], v[1], ...}, the first lowest
    W* d = reg<W>(w, i.d);
    ACTIVE {
        W v = 0;
        for (u32 k = 0; k < i.count; ++k)
            v = static_cast<W>(v | static_cast<W>(static_cast<W>(reg<N>(w, i.v[k])[l]) << (8 * sizeof(N) * k)));
        d[l] = v;
    }
}
template <class W, class N> void unpack(Warp& w, const Inst& i) {
    const W* a = reg<W>(w, i.a);
    N values[8][32];
    ACTIVE {
        for (u32 k = 0; k < i.count; ++k) values[k][l] = static_cast<N>(a[l] >> (8 * sizeof(N) * k));
    }
    for (u32 k = 0; k < i.count; ++k) {
        N* d = reg<N>(w, i.v[k]);
        ACTIVE d[l] = values[k][l];
    }
}

}  // namespace

void Decoder::load_store(bool is_load) {
    need(2);
    Inst i;
    Space space = Space::kGeneric;
    const Type t = last();
    if (opt("global"))
        space = Space::kGlobal;
    else if (opt("shared") || opt("shared::cta"))
        space = Space::kShared;
    else if (opt("param"))
        space = Space::kParam;
    else if (opt("local"))
        space = Space::kLocal;
    else if (opt("const"))
        space = Space::kGlobal;
    i.count = 1;
    if (opt("v2")) i.count = 2;
    if (opt("v4")) i.count = 4;
    for (const char* harmless : {"volatile", "weak", "relaxed", "acquire", "release", "cta", "gpu", "sys", "nc", "ca",
                                 "cg", "cs", "lu", "cv", "wb", "wt"})
        opt(harmless);
    const string& address_text = ops_[is_load ? 1 : 0];
    const string& value_text = ops_[is_load ? 0 : 1];
    bool wide = true;
    i.a = address(address_text, &i.imm, &wide, space == Space::kShared ? 32 : 64);
    if (space != Space::kShared && space != Space::kLocal && !wide) throw std::runtime_error("32-bit address");
    const auto list = elements(value_text);
    if (list.size() != i.count) throw std::runtime_error("vector length");
    for (u32 e = 0; e < i.count; ++e)
        i.v[e] = is_load ? dst(list[e], t.bits, t.kind == 's') : src(list[e], t.bits, t.kind);
    i.run = is_load ? load_run(space, t.bits / 8, wide) : store_run(space, t.bits / 8, wide);
    emit(i);
}

void Decoder::move() {
    need(2);
    const Type t = last();
    if (t.kind == 'p') return predicates("mov");
    if (ops_[0][0] == '{' || ops_[1][0] == '{') return move_vector(t);
    Inst i;
    i.a = src(ops_[1], t.bits, t.kind);
    i.d = dst(ops_[0], t.bits);
    if (t.bits == 16) i.run = UN(u16, u16, a);
    if (t.bits == 32) i.run = UN(u32, u32, a);
    if (t.bits == 64) i.run = UN(u64, u64, a);
    emit(i);
}

// {a, b} into one wider register, the first lowest, or the other way.
void Decoder::move_vector(const Type& t) {
    const bool packs = ops_[1][0] == '{';
    const auto list = elements(ops_[packs ? 1 : 0]);
    const u32 n = static_cast<u32>(list.size()), part = t.bits / n;
    Inst i;
    i.count = static_cast<u8>(n);
    for (u32 e = 0; e < n; ++e) i.v[e] = packs ? src(list[e], part) : dst(list[e], part);
    if (packs)
        i.d = dst(ops_[0], t.bits);
    else
        i.a = src(ops_[1], t.bits);
#define CASE(w, n_, W, N) \
    if (t.bits == w && part == n_) i.run = packs ? pack<W, N> : unpack<W, N>;
    CASE(64, 32, u64, u32)
    CASE(64, 16, u64, u16)
    CASE(32, 16, u32, u16)
    CASE(32, 8, u32, u8)
    CASE(16, 8, u16, u8)
    CASE(64, 8, u64, u8)
#undef CASE
    emit(i);
}

void Decoder::convert_address() {  // to.space: generic to space; space: the other way
    need(2);
    const Type t = last();
    const bool to = opt("to");
    u64 base = 0;
    if (opt("shared") || opt("shared::cta"))
        base = kSharedBase;
    else if (opt("local"))
        base = kLocalBase;
    else if (opt("param"))
        base = 0;
    else if (!opt("global") && !opt("const"))
        throw std::runtime_error("space");
    if (t.bits != 64) throw std::runtime_error("32-bit addresses");
    Inst i;
    i.a = src(ops_[1], 64);
    i.b = constant(64, to ? u64{0} - base : base);
    i.d = dst(ops_[0], 64);
    i.run = BIN(u64, a + b);
    emit(i);
}

void Decoder::copy_async() {
    if (!opt("async")) throw std::runtime_error("cp");
    Inst i;
    if (opt("commit_group")) {
        i.run = cp_async_commit;
        return emit(i);
    }
    if (opt("wait_group")) {
        u64 n;
        need(1);
        if (!immediate(ops_[0], &n)) throw std::runtime_error("group");
        i.imm = static_cast<s64>(n);
        i.run = cp_async_wait;
        return emit(i);
    }
    if (opt("wait_all")) {
        i.flag = 1;
        i.run = cp_async_wait;
        return emit(i);
    }
    const bool cg = opt("cg"), ca = opt("ca");
    if ((!cg && !ca) || !(opt("shared") || opt("shared::cta")) || !opt("global")) throw std::runtime_error("cp.async");
    if (ops_.size() != 3 && ops_.size() != 4) throw std::runtime_error("operands");
    u64 bytes;
    if (!immediate(ops_[2], &bytes)) throw std::runtime_error("size");
    if (cg ? bytes != 16 : (bytes != 4 && bytes != 8 && bytes != 16)) throw std::runtime_error("size");
    bool wide;
    s64 offset;
    const u32 to = address(ops_[0], &i.imm, &wide, 32);
    i.a = to;
    if (wide) {
        Inst narrow;
        narrow.a = to;
        narrow.d = allocate(32);
        narrow.run = convert_bits(64, 32, false);
        emit(narrow);
        i.a = narrow.d;
    }
    i.b = address(ops_[1], &offset, &wide, 64);
    if (!wide || offset < 0) throw std::runtime_error("source address");
    i.target = static_cast<u32>(offset);
    i.flag = ops_.size() == 4;  // may fill with zeros
    i.c = i.flag ? src(ops_[3], 32) : constant(32, bytes);
    i.count = static_cast<u8>(bytes);
    i.run = cp_async;
    emit(i);
}

}  // namespace ptx
