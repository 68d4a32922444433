// launch.h: registry of kernels and running a grid.
#pragma once

#include <cstdint>
#include <string>

#include "worker.h"

namespace emu {

const Kernel* find_kernel(const char* name);
uint32_t kernel_count();
const Kernel* kernel_at(uint32_t i);  // sorted by name

struct KernelStats {
    uint64_t calls, blocks;
    Counters counters;
};
KernelStats& stats_of(const Kernel* kernel);
void reset_stats();

struct Settings {
    int threads = 2;
    bool tracking = false;
};
Settings& settings();  // under the driver's lock, as everything here

// Of the calling thread: tests on several threads choose their orders independently. Work runs in the order of the
// thread that waits for it.
Schedule& schedule();

// Runs all blocks. Of several failures the one of the earliest block in the schedule's order is returned.
Failure run_grid(const Launch& launch);

}  // namespace emu
