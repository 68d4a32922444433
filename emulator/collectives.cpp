// collectives.cpp: warp operations and cp.async. Each runs once for the 32 lanes, in the last lane to arrive.
#include <cstring>

#include "result.h"
#include "worker.h"

namespace emu {

namespace {

void require_full(unsigned mask, Site site) {
    if (mask != kFull) fail("mask 0x%08x at %s:%d: only full warps are emulated", mask, site.file, site.line);
}

struct ShuffleArgs {
    uint64_t bits;
    Shuffle kind;
    int arg, width;
    uint64_t out;
};

int source_lane(const ShuffleArgs& args, int lane) {
    const int base = lane & ~(args.width - 1);
    const int last = base + args.width - 1;
    int source = lane;
    switch (args.kind) {
        case Shuffle::kIndex: return base + (args.arg & (args.width - 1));
        case Shuffle::kXor: source = lane ^ args.arg; break;
        case Shuffle::kDown: source = lane + args.arg; break;
        case Shuffle::kUp: source = lane - args.arg; return source < base ? lane : source;
    }
    return source > last ? lane : source;
}

void run_shuffle(void** args, const void*) {
    for (int lane = 0; lane < kLanes; ++lane) {
        ShuffleArgs& mine = *static_cast<ShuffleArgs*>(args[lane]);
        mine.out = static_cast<ShuffleArgs*>(args[source_lane(mine, lane)])->bits;
    }
}

struct BallotArgs {
    bool predicate;
    unsigned out;
};

void run_ballot(void** args, const void*) {
    unsigned bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
        bits |= static_cast<unsigned>(static_cast<BallotArgs*>(args[lane])->predicate) << lane;
    }
    for (int lane = 0; lane < kLanes; ++lane) static_cast<BallotArgs*>(args[lane])->out = bits;
}

void run_sync(void**, const void*) { ++this_worker->self().warp->sync_epoch; }

struct LdmatrixArgs {
    uint32_t* r;
    uint32_t smem;
    int count;
    bool trans;
};

// Wavefronts of one phase: how often the busiest of the eight 16-byte bank groups is visited.
int wavefronts(const uint32_t (&smem)[8]) {
    uint32_t groups = 0;
    for (uint32_t at : smem) groups |= 1u << (at / 16 % 8);
    if (groups == 0xff) return 1;
    int visits[8] = {};
    int most = 0;
    for (uint32_t at : smem) {
        const int n = ++visits[at / 16 % 8];
        if (n > most) most = n;
    }
    return most;
}

void run_ldmatrix(void** args, const void* pc) {
    uint32_t* results[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) results[lane] = static_cast<LdmatrixArgs*>(args[lane])->r;
    const int count = static_cast<LdmatrixArgs*>(args[0])->count;
    const bool trans = static_cast<LdmatrixArgs*>(args[0])->trans;
    const Lane* fibers = this_worker->self().warp->lanes;
    const unsigned char* arena = current.arena;
    for (int matrix = 0; matrix < count; ++matrix) {
        union {
            uint16_t half[8][8];
            uint32_t word[8][4];
        } rows;
        uint32_t smem[8];
        for (int row = 0; row < 8; ++row) {
            const int lane = matrix * 8 + row;
            const uint32_t at = static_cast<LdmatrixArgs*>(args[lane])->smem;
            if (at % 16 != 0 || at > kArenaBytes - 16) {
                this_worker->fail(
                    kIllegalAddress,
                    "ldmatrix: lane " + std::to_string(lane) + " gives shared address " + std::to_string(at), pc);
            }
            check_shared(fibers[lane], at, 16, false, pc);
            memcpy(rows.half[row], arena + at, 16);
            smem[row] = at;
        }
        if (trans) {
            for (int lane = 0; lane < kLanes; ++lane) {
                const int group = lane / 4, quad = lane % 4;
                const uint32_t low = rows.half[2 * quad][group], high = rows.half[2 * quad + 1][group];
                results[lane][matrix] = low | high << 16;
            }
        } else {
            for (int lane = 0; lane < kLanes; ++lane) results[lane][matrix] = rows.word[lane / 4][lane % 4];
        }
        current.counters.bank_wavefronts += static_cast<uint64_t>(wavefronts(smem));
    }
    current.counters.bank_phases += static_cast<uint64_t>(count);
    current.counters.shared_moved += static_cast<uint64_t>(count) * 128;
}

// The usual size without a call.
inline void fill(unsigned char* to, int value, size_t bytes) {
    if (bytes == 16) {
        memset(to, value, 16);
    } else {
        memset(to, value, bytes);
    }
}

void finish_copies(Lane& lane, uint32_t end) {
    for (uint32_t i = lane.copies_done; i < end; ++i) {
        const Copy& copy = lane.copies[i];
        unsigned char* to = current.arena + copy.smem;
        if (copy.valid == 16) {
            memcpy(to, copy.global, 16);
        } else if (copy.valid == 0) {
            fill(to, 0, copy.bytes);
        } else {
            memcpy(to, copy.global, copy.valid);
        }
        check_async_done(lane, copy.smem, copy.bytes);
    }
    lane.copies_done = end;
}

}  // namespace

void sync_warp(unsigned mask, Site site) {
    require_full(mask, site);
    this_worker->collective(run_sync, nullptr, site, __builtin_return_address(0));
}

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int arg, int width, Site site) {
    require_full(mask, site);
    if (width < 1 || width > kLanes || (width & (width - 1)) != 0) {
        fail("shuffle width %d at %s:%d is not a power of two up to 32", width, site.file, site.line);
    }
    ShuffleArgs args{bits, kind, arg, width, 0};
    this_worker->collective(run_shuffle, &args, site, __builtin_return_address(0));
    return args.out;
}

unsigned ballot(unsigned mask, bool predicate, Site site) {
    require_full(mask, site);
    BallotArgs args{predicate, 0};
    this_worker->collective(run_ballot, &args, site, __builtin_return_address(0));
    return args.out;
}

void ldmatrix_any(uint32_t* r, uint32_t smem, int count, bool trans, Site site) {
    LdmatrixArgs args{r, smem, count, trans};
    this_worker->collective(run_ldmatrix, &args, site, __builtin_return_address(0));
}

// The adversary: until it is waited for, the destination holds NaN; a too early read and a refill of a stage still
// in use both show, in one run.
void cp_async(uint32_t smem, const void* global, unsigned bytes, unsigned valid) {
    if (smem % bytes != 0 || reinterpret_cast<uintptr_t>(global) % bytes != 0) fail_misaligned(global, bytes);
    if (smem > kArenaBytes - bytes) fail("cp.async to shared address %u", smem);
    Lane& lane = this_worker->self();
    const unsigned char* from = static_cast<const unsigned char*>(global);
    if (valid != 0) {
        check_global_read(lane, global, valid, __builtin_return_address(0));
        (void)*static_cast<const volatile unsigned char*>(from);  // fault here, not at the wait
        current.counters.global_read += valid;
        if (current.tracking) track(global, valid, false);
    }
    check_async_issue(lane, smem, bytes, __builtin_return_address(0));
    current.counters.shared_moved += bytes;
    fill(current.arena + smem, 0xff, bytes);
    lane.copies.push_back(Copy{smem, from, static_cast<uint16_t>(bytes), static_cast<uint16_t>(valid)});
}

void cp_async_commit() {
    Lane& lane = this_worker->self();
    lane.groups.push_back(static_cast<uint32_t>(lane.copies.size()));
}

void cp_async_wait(int pending) {
    Lane& lane = this_worker->self();
    const uint32_t committed = static_cast<uint32_t>(lane.groups.size());
    while (committed - lane.groups_done > static_cast<uint32_t>(pending))
        finish_copies(lane, lane.groups[lane.groups_done++]);
    // Nothing outstanding: start again at the front, so that the queues stay as long as the pipeline.
    if (lane.groups_done == committed && lane.copies_done == lane.copies.size()) {
        lane.copies.clear();
        lane.groups.clear();
        lane.copies_done = lane.groups_done = 0;
    } else if (lane.groups_done > 64) {
        const uint32_t done = lane.copies_done;
        lane.copies.erase(lane.copies.begin(), lane.copies.begin() + done);
        lane.groups.erase(lane.groups.begin(), lane.groups.begin() + lane.groups_done);
        for (uint32_t& end : lane.groups) end -= done;
        lane.copies_done = lane.groups_done = 0;
    }
}

}  // namespace emu
