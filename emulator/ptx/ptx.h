// ptx.h: kernels as nvcc compiled them to PTX, run in the place of those the host's compiler made. See README.md.
#pragma once

#include <cstdint>

#include "../launch.h"

namespace ptx {

#ifdef EMU_WITH_PTX
// Whether EMU_PTX names a folder of .ptx files.
bool active();
void begin_launch(const emu::Launch& launch);
// Runs one block of the kernel of the same name. False: `failure` says why.
bool run_block(const emu::Launch& launch, uint64_t block, const emu::Schedule& schedule, emu::Failure& failure);
#else  // a build without the interpreter
inline bool active() { return false; }
inline void begin_launch(const emu::Launch&) {}
inline bool run_block(const emu::Launch&, uint64_t, const emu::Schedule&, emu::Failure&) { return false; }
#endif

}  // namespace ptx
