// warp.h: running the lanes of a warp.
#pragma once

#include "machine.h"

namespace ptx {

// Runs until the warp waits at a barrier of the block (`at_barrier`), or ends (`done`). Faults are thrown.
void run_warp(Warp& w, Kernel& k);

}  // namespace ptx
