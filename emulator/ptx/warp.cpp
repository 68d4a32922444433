// warp.cpp: the lanes of a warp. Those at the lowest place in the code run first, so that lanes that part meet again as
// soon as they can; an operation of the warp runs when all its members have come.
#include "warp.h"

#include <algorithm>

#include "../result.h"
#include "lanes.h"

namespace ptx {

namespace {

constexpr u64 kWatchdog = 4000000000ull;  // instructions of one warp

string divergence_text(const Warp& w) {
    string out = "lanes that must meet do not:";
    for (const Group& g : w.others) {
        char text[200];
        snprintf(text, sizeof(text), " [lanes %08x at \"%.80s\"]", g.mask,
                 w.kernel->texts[static_cast<size_t>(std::max(0, w.kernel->code[g.pc].text))].c_str());
        out += text;
    }
    return out;
}

// EMU_PTX_SOLO: lanes run one by one from one warp operation to the next, 1 ascending, 2 descending, 3 at random:
// nothing may rely on lanes keeping step.
void split(Warp& w) {
    const u32 mask = w.mask;
    if ((mask & (mask - 1)) == 0) return;
    bool first = true;
    for (u32 k = 0; k < 32; ++k) {
        const u32 l = options().solo == 2   ? 31 - k
                      : options().solo == 3 ? (k * 13 + static_cast<u32>(w.steps)) & 31
                                            : k;
        if (!(mask >> l & 1)) continue;
        if (first)
            w.mask = 1u << l;
        else
            w.others.push_back(Group{w.pc, 1u << l, false});
        first = false;
    }
}

bool choose_solo(Warp& w) {
    auto& all = w.others;
    if (all.empty()) return false;
    for (size_t i = 0; i < all.size(); ++i) {
        if (all[i].waiting) continue;
        w.pc = all[i].pc;
        w.mask = all[i].mask;
        all.erase(all.begin() + static_cast<ptrdiff_t>(i));
        return true;
    }
    bool merged = false;
    for (size_t i = 0; i < all.size(); ++i) {
        for (size_t j = i + 1; j < all.size();) {
            if (all[j].pc == all[i].pc) {
                all[i].mask |= all[j].mask;
                all[i].waiting = false;
                merged = true;
                all.erase(all.begin() + static_cast<ptrdiff_t>(j));
            } else {
                ++j;
            }
        }
    }
    if (!merged) fault(emu::kLaunchFailed, "%s", divergence_text(w).c_str());
    return choose_solo(w);
}

// Chooses which lanes run: those with the lowest place that do not wait. False: all lanes have ended.
bool choose(Warp& w) {
    if (options().solo) return choose_solo(w);
    auto& all = w.others;
    if (all.empty()) return false;
    for (size_t i = 0; i < all.size(); ++i) {
        for (size_t j = i + 1; j < all.size();) {
            if (all[j].pc == all[i].pc) {
                all[i].mask |= all[j].mask;
                all[i].waiting = false;
                all.erase(all.begin() + static_cast<ptrdiff_t>(j));
            } else {
                ++j;
            }
        }
    }
    size_t best = all.size();
    for (size_t i = 0; i < all.size(); ++i) {
        if (!all[i].waiting && (best == all.size() || all[i].pc < all[best].pc)) best = i;
    }
    if (best == all.size()) fault(emu::kLaunchFailed, "%s", divergence_text(w).c_str());
    w.pc = all[best].pc;
    w.mask = all[best].mask;
    all.erase(all.begin() + static_cast<ptrdiff_t>(best));
    return true;
}

u32 limit_of(const Warp& w) {
    u32 limit = kAll;
    if (options().solo) return limit;
    for (const Group& g : w.others) {
        if (g.pc >= w.pc) limit = std::min(limit, g.pc);
    }
    return limit;
}

class Runner {
  public:
    Runner(Warp& w, Kernel& k) : w_(w), k_(k), limit_(limit_of(w)) {}

    void run() {
        const Inst* const code = k_.code.data();
        u8* const hit = k_.hit.data();
        for (;;) {
            if (w_.pc >= limit_) {
                w_.others.push_back(Group{w_.pc, w_.mask, false});
                turn();
                continue;
            }
            const Inst& i = code[w_.pc];
            if (++w_.steps > kWatchdog) fault(emu::kLaunchTimeout, "does not end");
            u32 m = w_.mask;
            if (i.guard >= 0) {
                const u32 p = *reg<u32>(w_, static_cast<u32>(i.guard));
                m &= i.negate ? ~p : p;
            }
            hit[w_.pc] = 1;
            switch (i.kind) {
                case Kind::kPlain:
                    w_.m = m;
                    if (m != 0) i.run(w_, i);
                    w_.pc += 1;
                    break;
                case Kind::kBranch: branch(i, m); break;
                case Kind::kExit:
                    if (leave(m)) return;
                    break;
                case Kind::kSync: meet(i, m); break;
                case Kind::kBarrier:
                    if (wait_for_block(i, m)) return;
                    break;
            }
        }
    }

  private:
    void turn() {
        choose(w_);
        limit_ = limit_of(w_);
    }
    void wait() {
        w_.others.push_back(Group{w_.pc, w_.mask, true});
        turn();
    }

    void branch(const Inst& i, u32 m) {
        if (i.flag && m != 0 && m != w_.mask)
            fault(emu::kLaunchFailed, "bra.uni taken by lanes %08x of %08x", m, w_.mask);
        if (m == 0) {
            w_.pc += 1;
        } else if (m != w_.mask) {
            w_.others.push_back(Group{i.target, m, false});
            w_.others.push_back(Group{w_.pc + 1, w_.mask & ~m, false});
            turn();
        } else {
            w_.pc = i.target;
            if (!options().solo && !w_.others.empty()) {
                w_.others.push_back(Group{w_.pc, w_.mask, false});
                turn();
            }
        }
    }

    // True: no lane is left.
    bool leave(u32 m) {
        w_.live &= ~m;
        w_.mask &= ~m;
        if (w_.mask != 0) {
            w_.pc += 1;
            return false;
        }
        for (Group& g : w_.others) g.waiting = false;
        if (w_.others.empty()) {
            w_.done = true;
            return true;
        }
        turn();
        return false;
    }

    // The mask of lanes that an operation of the warp is for.
    u32 members_of(const Inst& i, u32 m) {
        if (!i.target) return kAll;
        u32 members = 0;
        const u32* f = reg<u32>(w_, i.f);
        for (u32 l = 0; l < 32; ++l) {
            if (!(m >> l & 1)) continue;
            if (members != 0 && f[l] != members) fault(emu::kLaunchFailed, "lanes name different members");
            members = f[l];
        }
        return members;
    }

    void meet(const Inst& i, u32 m) {
        if (m == 0) {
            w_.pc += 1;
            return;
        }
        const u32 members = members_of(i, m);
        if ((m & ~members) != 0) fault(emu::kLaunchFailed, "lanes %08x are not among the members %08x", m, members);
        if ((members & ~w_.live) != 0)
            fault(emu::kLaunchFailed, "members %08x, of which %08x have ended", members, members & ~w_.live);
        if ((members & w_.mask & ~m) != 0)
            fault(emu::kLaunchFailed, "members %08x, but the guard lets only %08x through", members, m);
        if (m != members) return wait();
        w_.m = m;
        i.run(w_, i);
        w_.pc += 1;
        if (options().solo) split(w_);
    }

    // True: every lane of the warp is there.
    bool wait_for_block(const Inst& i, u32 m) {
        if (m == 0) {
            w_.pc += 1;
            return false;
        }
        if (m != w_.mask) fault(emu::kLaunchFailed, "a guard lets only lanes %08x of %08x to the barrier", m, w_.mask);
        if (m != w_.live) {
            wait();
            return false;
        }
        if (w_.live != kAll) warn(w_, i, "a barrier after lanes of the warp have ended");
        w_.at_barrier = true;
        w_.barrier_id = i.imm;
        return true;
    }

    Warp& w_;
    Kernel& k_;
    u32 limit_;  // where the next group of lanes stands
};

}  // namespace

void run_warp(Warp& w, Kernel& k) {
    if (w.at_barrier) {
        w.at_barrier = false;
        w.pc += 1;
    }
    if (options().solo) split(w);
    Runner(w, k).run();
}

}  // namespace ptx
