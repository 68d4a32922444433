// decode_warp.cpp: branches, barriers and what the lanes of a warp do together.
#include "decoder.h"
#include "../result.h"

namespace ptx {

namespace {

void nothing(Warp&, const Inst&) {}
void trap(Warp&, const Inst&) { fault(emu::kLaunchFailed, "trap"); }

}  // namespace

void Decoder::branch() {
    need(1);
    Inst i;
    i.kind = Kind::kBranch;
    i.run = nothing;
    i.flag = opt("uni");
    fixups_.push_back({k_.code.size(), ops_[0]});
    emit(i);
}

void Decoder::leave(bool traps) {
    opt("uni");
    Inst i;
    i.kind = traps ? Kind::kPlain : Kind::kExit;
    i.run = traps ? trap : nothing;
    emit(i);
}

// Blocks and warps run one after another here: the order of memory is not modelled.
void Decoder::fence() {
    for (const char* scope : {"sc", "acq_rel", "cta", "gpu", "sys", "gl"}) opt(scope);
    Inst i;
    i.run = nothing;
    emit(i);
}

void Decoder::barrier() {
    if (opt("warp")) {
        opt("sync");
        need(1);
        Inst i;
        i.kind = Kind::kSync;
        i.f = src(ops_[0], 32);
        i.target = 1;  // members in f
        i.run = nothing;
        return emit(i);
    }
    opt("cta");
    if (!opt("sync")) throw std::runtime_error("only bar.sync");
    opt("aligned");
    if (ops_.empty() || ops_.size() > 2) throw std::runtime_error("operands");
    Inst i;
    i.kind = Kind::kBarrier;
    i.run = nothing;
    u64 id;
    if (!immediate(ops_[0], &id)) throw std::runtime_error("barrier number in a register");
    i.imm = static_cast<s64>(id);
    if (ops_.size() == 2) throw std::runtime_error("barrier with a count");
    emit(i);
}

void Decoder::shuffles() {
    if (!opt("sync")) throw std::runtime_error("without sync");
    if (!opt("b32")) throw std::runtime_error("type");
    need(5);
    Inst i;
    i.kind = Kind::kSync;
    i.count = 0;
    if (opt("up"))
        i.flag = 0;
    else if (opt("down"))
        i.flag = 1;
    else if (opt("bfly"))
        i.flag = 2;
    else if (opt("idx"))
        i.flag = 3;
    else
        throw std::runtime_error("mode");
    const size_t bar = ops_[0].find('|');
    i.a = src(ops_[1], 32);
    i.b = src(ops_[2], 32);
    i.c = src(ops_[3], 32);
    i.f = src(ops_[4], 32);
    i.d = dst(trim(ops_[0].substr(0, bar)), 32);
    i.imm = bar != string::npos;
    if (i.imm) i.e = dst(trim(ops_[0].substr(bar + 1)), 1);
    i.run = shuffle;
    i.target = 1;  // members in f
    emit(i);
}

void Decoder::votes() {
    if (!opt("sync")) throw std::runtime_error("without sync");
    need(3);
    Inst i;
    i.kind = Kind::kSync;
    i.count = 0;
    i.imm = ops_[1][0] == '!';
    i.a = src(i.imm ? ops_[1].substr(1) : ops_[1], 1);
    i.f = src(ops_[2], 32);
    i.target = 1;
    if (opt("ballot")) {
        opt("b32");
        i.flag = 0;
        i.d = dst(ops_[0], 32);
    } else {
        i.flag = opt("any") ? 1 : opt("all") ? 2 : opt("uni") ? 3 : 9;
        if (i.flag == 9 || !opt("pred")) throw std::runtime_error("mode");
        i.d = dst(ops_[0], 1);
    }
    i.run = vote;
    emit(i);
}

void Decoder::matrix() {
    if (!opt("sync") || !opt("aligned") || !opt("m8n8") || !opt("b16")) throw std::runtime_error("shape");
    if (!opt("shared") && !opt("shared::cta")) throw std::runtime_error("space");
    Inst i;
    i.kind = Kind::kSync;
    i.count = opt("x1") ? 1 : opt("x2") ? 2 : opt("x4") ? 4 : 0;
    i.flag = opt("trans");
    need(2);
    const auto list = elements(ops_[0]);
    if (list.size() != i.count) throw std::runtime_error("registers");
    for (u32 e = 0; e < i.count; ++e) i.v[e] = dst(list[e], 32);
    bool wide;
    i.a = address(ops_[1], &i.imm, &wide, 32);
    if (wide) throw std::runtime_error("64-bit address");
    i.run = ldmatrix;
    emit(i);
}

void Decoder::product() {
    string all;
    for (auto& m : mods_) all += "." + m;
    mods_.clear();
    if (all != ".sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32") throw std::runtime_error("shape or types");
    need(4);
    const auto d = elements(ops_[0]), a = elements(ops_[1]), b = elements(ops_[2]), c = elements(ops_[3]);
    if (d.size() != 4 || a.size() != 4 || b.size() != 2 || c.size() != 4) throw std::runtime_error("registers");
    Inst i;
    i.kind = Kind::kSync;
    i.count = 1;
    i.a = src(a[0], 32), i.b = src(a[1], 32), i.c = src(a[2], 32), i.d = src(a[3], 32);
    i.e = src(b[0], 32), i.f = src(b[1], 32);
    for (u32 e = 0; e < 4; ++e) i.v[4 + e] = src(c[e], 32);
    for (u32 e = 0; e < 4; ++e) i.v[e] = dst(d[e], 32);
    i.run = mma16816;
    emit(i);
}

}  // namespace ptx
