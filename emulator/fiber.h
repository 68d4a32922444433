// fiber.h: stacks and the switch between them. One fiber is one CUDA thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

// Saved state of a fiber that is not running: its stack pointer, or with ucontext a context.
using FiberState = void*;

// A stack with a guard page below it, so that an overflow faults instead of writing into the neighbour.
struct FiberStack {
    unsigned char* low;  // first usable byte
    size_t bytes;
};

constexpr size_t kPage = 4096;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

FiberStack make_stack(size_t bytes);

// A fiber that will run entry() from the start. `colour` shifts the stack top: equal frames of the lanes of a warp
// would otherwise fall into the same few cache sets (costs 15 % of a convolution).
FiberState make_fiber(const FiberStack& stack, size_t colour, void (*entry)());

// Saves the running fiber in *save and continues `to`, whose stack is `stack` (needed by AddressSanitizer only).
void switch_fiber(FiberState* save, FiberState to, const FiberStack& stack);

}  // namespace emu

// The hand-written switch takes 5 ns; ucontext about 150, because it sets the signal mask by a system call.
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_FAST_SWITCH 1
extern "C" void emu_fiber_switch(void** save, void* to);
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef EMU_FAST_SWITCH
inline void emu::switch_fiber(FiberState* save, FiberState to, const FiberStack& stack) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack.low, stack.bytes);
    emu_fiber_switch(save, to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    (void)stack;
    emu_fiber_switch(save, to);
#endif
}
#endif
