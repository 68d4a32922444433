// block.cpp: the warps of a block, from barrier to barrier; what the emulated driver calls.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>

#include "../result.h"
#include "lanes.h"
#include "program.h"
#include "ptx.h"
#include "text.h"
#include "warp.h"

namespace ptx {

namespace {

std::atomic<u64> launches{0};

struct Machine {
    Block block;
    std::vector<Warp> warps;
    std::vector<u8> registers, local;
};
thread_local Machine machine;

void set_special(Warp& w, u32 which, u32 value) {
    u32* r = reg<u32>(w, which * 128);
    LANES r[l] = value;
}

// Registers that are the same for every block of a launch. The numbers of kSpecials.
void start_warp(Warp& w, const Kernel& k, const emu::Launch& launch, u32 index, u32 warps) {
    memcpy(w.regs, k.initial.data(), k.regs_bytes);
    u32* tid = reg<u32>(w, 0);
    LANES tid[l] = index * 32 + l;
    for (u32 s : {1u, 2u}) set_special(w, s, 0);
    set_special(w, 3, launch.kernel->threads);
    for (u32 s : {4u, 5u}) set_special(w, s, 1);
    set_special(w, 9, launch.grid.x);
    set_special(w, 10, launch.grid.y);
    set_special(w, 11, launch.grid.z);
    u32* lane = reg<u32>(w, 12 * 128);
    LANES lane[l] = l;
    set_special(w, 13, index);
    set_special(w, 14, warps);
    for (u32 s = 15; s < 20; ++s) {
        u32* r = reg<u32>(w, s * 128);
        LANES {
            const u32 eq = 1u << l;
            r[l] = s == 15 ? eq : s == 16 ? eq - 1 : s == 17 ? eq | (eq - 1) : s == 18 ? ~(eq | (eq - 1)) : ~(eq - 1);
        }
    }
}

void start_launch(Machine& m, const Kernel& k, const emu::Launch& launch) {
    Block& b = m.block;
    b.kernel = &k;
    b.launch = launches;
    b.ranges.clear();
    const auto* from = static_cast<const u8*>(launch.params);
    b.params.assign(from, from + k.params_bytes);
    const u32 warps = launch.kernel->threads / 32;
    m.registers.resize(static_cast<size_t>(k.regs_bytes) * warps + 64);
    m.local.assign(static_cast<size_t>(k.local_bytes) * 32 * warps, 0xff);
    u8* base = reinterpret_cast<u8*>(align_up(reinterpret_cast<u64>(m.registers.data()), 64));
    m.warps.resize(warps);
    for (u32 i = 0; i < warps; ++i) {
        Warp& w = m.warps[i];
        w.regs = base + static_cast<size_t>(i) * k.regs_bytes;
        w.block = &b;
        w.kernel = &k;
        w.index = i;
        w.local = m.local.data() + static_cast<size_t>(i) * 32 * k.local_bytes;
        start_warp(w, k, launch, i, warps);
    }
}

// Shared memory is not-a-number until it is written.
void start_memory(Block& b, const Kernel& k, u32 dynamic_bytes) {
    const u32 dynamic_at = kSharedStart + k.static_bytes;
    b.shared_top = dynamic_at + dynamic_bytes;
    const size_t room = static_cast<size_t>(b.shared_top) + 64;
    if (b.shared.size() < room) {
        b.shared.resize(room);
        b.shadow.resize(room);
    }
    memset(b.shared.data(), 0xff, room);
    memset(b.shadow.data(), kOutside, room);
    for (auto& s : k.shared) memset(&b.shadow[s.second.first], kFresh, s.second.second);
    memset(&b.shadow[dynamic_at], kFresh, dynamic_bytes);
}

void start_block(Machine& m, const Kernel& k, const emu::Launch& launch, u64 index) {
    if (m.block.launch != launches || m.block.kernel != &k) start_launch(m, k, launch);
    start_memory(m.block, k, launch.dynamic_bytes);
    const emu::Index& grid = launch.grid;
    for (Warp& w : m.warps) {
        set_special(w, 6, static_cast<u32>(index % grid.x));
        set_special(w, 7, static_cast<u32>(index / grid.x % grid.y));
        set_special(w, 8, static_cast<u32>(index / grid.x / grid.y));
        w.pc = 0;
        w.mask = w.live = kAll;
        w.others.clear();
        w.at_barrier = w.done = false;
        w.steps = 0;
        for (AsyncLane& lane : w.async) {
            lane.copies.clear();
            lane.groups.clear();
            lane.uncommitted = 0;
        }
    }
}

// To the next barrier; a fault is thrown on with the place where it happened.
void run_warp_located(Warp& w, Kernel& k, u64 block) {
    try {
        run_warp(w, k);
    } catch (Fault& f) {
        const Inst& i = k.code[std::min<size_t>(w.pc, k.code.size() - 1)];
        char text[100];
        snprintf(text, sizeof(text), " (warp %u, lanes %08x, block %llu; ", w.index, w.mask,
                 static_cast<unsigned long long>(block));
        f.text += text + k.place(i) + ") in " + k.text_of(i);
        throw;
    }
}

// After each warp has come to a barrier or ended. False: all have ended.
bool barrier_reached(Machine& m, const Kernel& k) {
    bool any = false, ended = false;
    s64 id = -1;
    for (Warp& w : m.warps) {
        if (w.done) {
            ended = true;
            continue;
        }
        if (any && w.barrier_id != id) fault(emu::kLaunchFailed, "warps wait at different barriers");
        any = true;
        id = w.barrier_id;
    }
    if (!any || !ended) return any;
    for (Warp& w : m.warps) {
        if (w.done) continue;
        warn(w, k.code[w.pc], "a barrier after other warps have ended");
        break;
    }
    return true;
}

void run(Machine& m, Kernel& k, const emu::Schedule& schedule, u64 index) {
    const u32 count = static_cast<u32>(m.warps.size());
    std::vector<u32> order(count);
    for (u32 i = 0; i < count; ++i) order[i] = schedule.order == emu::Order::kDescending ? count - 1 - i : i;
    u32 round = 0;
    do {
        if (schedule.order == emu::Order::kRandom) {
            for (u32 i = count; i > 1; --i)
                std::swap(order[i - 1], order[emu::mix(schedule.seed ^ emu::mix(index * 1000 + round) ^ i) % i]);
        }
        for (u32 at : order) {
            if (!m.warps[at].done) run_warp_located(m.warps[at], k, index);
        }
        ++round;
    } while (barrier_reached(m, k));
    for (Warp& w : m.warps) k.executed += w.steps;
    k.blocks += 1;
}

// Why a kernel cannot be run at all: empty if it can.
emu::Failure refusal(const Kernel* k, const emu::Kernel& host) {
    const auto number = [](u32 n) { return std::to_string(n); };
    if (k == nullptr) return {emu::kNotFound, "no PTX of this name"};
    if (!k->error.empty()) return {emu::kNotSupported, k->error};
    if (k->params != 1 || k->params_bytes != host.params_bytes)
        return {emu::kInvalidValue,
                "parameters of " + number(k->params_bytes) + " bytes; the host passes " + number(host.params_bytes)};
    if (k->threads != host.threads)
        return {emu::kInvalidValue,
                "blocks of " + number(k->threads) + " threads; the host has " + number(host.threads)};
    return {0, {}};
}

Kernel* find(const char* name) {
    const auto found = program().kernels.find(name);
    return found == program().kernels.end() ? nullptr : found->second.get();
}

}  // namespace

bool active() {
    static const bool yes = !options().folder.empty();
    return yes;
}

void begin_launch(const emu::Launch& launch) {
    std::lock_guard<std::mutex> hold(program().lock);
    ++launches;
    Kernel* k = find(launch.kernel->name);
    if (k == nullptr) return;
    decode(*k);
    k->launches += 1;
    k->max_dynamic = std::max<u64>(k->max_dynamic.load(), launch.dynamic_bytes);
}

bool run_block(const emu::Launch& launch, uint64_t block, const emu::Schedule& schedule, emu::Failure& failure) {
    Kernel* k = find(launch.kernel->name);
    failure = refusal(k, *launch.kernel);
    emu::current.block_dim = emu::Index{launch.kernel->threads, 1, 1};
    if (failure.code == 0) {
        try {
            start_block(machine, *k, launch, block);
            run(machine, *k, schedule, block);
            return true;
        } catch (Fault& f) {
            machine.block.kernel = nullptr;
            failure = emu::Failure{f.code, f.text};
        }
    }
    failure.text = string("PTX kernel ") + launch.kernel->name + ": " + failure.text;
    say("FAULT " + failure.text);
    return false;
}

}  // namespace ptx
