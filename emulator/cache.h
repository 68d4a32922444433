// cache.h: what a launch moves between device memory and a cache of a given size in front of it: a model, for figures
// of traffic.
//
// The threads' accesses of each block are recorded as 32-byte sectors. After the launch they go through the cache,
// `running` blocks at a time by turns, a few accesses each; a block that is done makes room for the next in the order
// of the grid. The cache has 16 ways and evicts the least recently used; a write takes a place without reading. What is
// in the cache stays for the next launch. Counted are the sectors that a read does not find, and those that become
// dirty (each is written back once).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "device.h"

namespace emu {

using Trace = std::vector<uint32_t>;  // sector * 2 + 1 for a write, in the order of the block's accesses

class Cache {
  public:
    // Empties it. `bytes` 0: nothing is recorded or counted.
    void configure(uint64_t bytes, uint32_t running);
    bool on() const { return sets_ != 0; }
    void replay(const std::vector<Trace>& blocks, Counters& counters);

  private:
    void access(uint32_t entry, Counters& counters);

    static constexpr size_t kWays = 16;
    std::vector<uint32_t> ways_;  // of each set, used last first; kEmpty: none
    size_t sets_ = 0, running_ = 1;
};

Cache& cache();

}  // namespace emu
