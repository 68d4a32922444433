// cache.cpp: see cache.h.
#include "cache.h"

#include <algorithm>

#include "memory.h"

namespace emu {

namespace {
constexpr uint32_t kEmpty = UINT32_MAX;
constexpr size_t kTurn = 32;  // accesses of a block before the next one's
}  // namespace

Cache& cache() {
    static Cache value;
    return value;
}

void Cache::configure(uint64_t bytes, uint32_t running) {
    sets_ = bytes / (kWays * kSector);
    running_ = std::max<uint32_t>(running, 1);
    ways_.assign(sets_ * kWays, kEmpty);
}

void Cache::access(uint32_t entry, Counters& counters) {
    const uint32_t sector = entry >> 1, dirty = entry & 1;
    // Consecutive sectors in different sets, and rows of a power of two not all in the same ones.
    const size_t set = (sector + (sector >> 12) * 0x9e3779b1ull) % sets_;
    uint32_t* const first = ways_.data() + set * kWays;
    uint32_t* at = first;
    while (at != first + kWays - 1 && *at != kEmpty && *at >> 1 != sector) ++at;
    const bool hit = *at != kEmpty && *at >> 1 == sector;
    const uint32_t was_dirty = hit ? *at & 1 : 0;
    if (!hit && dirty == 0) counters.memory_read += kSector;
    if (dirty > was_dirty) counters.memory_written += kSector;
    std::move_backward(first, at, at + 1);
    *first = sector << 1 | dirty | was_dirty;
}

void Cache::replay(const std::vector<Trace>& blocks, Counters& counters) {
    struct Running {
        const Trace* trace;
        size_t done;
    };
    std::vector<Running> running;
    size_t next = 0;
    auto start = [&](Running& slot) {
        if (next == blocks.size()) return false;
        slot = Running{&blocks[next++], 0};
        return true;
    };
    running.resize(std::min(running_, blocks.size()));
    for (Running& slot : running) start(slot);
    while (!running.empty()) {
        for (size_t i = 0; i < running.size();) {
            Running& slot = running[i];
            const size_t end = std::min(slot.done + kTurn, slot.trace->size());
            for (; slot.done < end; ++slot.done) access((*slot.trace)[slot.done], counters);
            if (slot.done == slot.trace->size() && !start(slot)) {
                running.erase(running.begin() + static_cast<ptrdiff_t>(i));
            } else {
                ++i;
            }
        }
    }
}

}  // namespace emu
