// locate.h: from an address in the library to lines of the kernels' sources.
#pragma once

#include <string>

namespace emu {

// " at gelu.cu:41" or, through inlined functions, " at common.cuh:38, from gelu.cu:41"; empty if nothing is known.
// Calls addr2line, so only for messages.
std::string locate(const void* pc);

}  // namespace emu
