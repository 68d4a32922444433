// fiber.cpp: see fiber.h.
#include "fiber.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

#ifndef EMU_FAST_SWITCH
#include <ucontext.h>
#endif

namespace emu {

FiberStack make_stack(size_t bytes) {
    void* base = mmap(nullptr, bytes + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED || mprotect(static_cast<char*>(base) + kPage, bytes, PROT_READ | PROT_WRITE) != 0) {
        perror("emulated device: no memory for fiber stacks");
        abort();
    }
    return FiberStack{static_cast<unsigned char*>(base) + kPage, bytes};
}

#ifdef EMU_FAST_SWITCH

// The System V callee-saved registers. `ret`, not `pop; jmp`: the lanes of a warp usually wait in the same call, so the
// return address predictor is right, here and in the frames above (jmp costs 40 % of a matrix product's speed).
asm(R"(
    .text
    .globl emu_fiber_switch
    .hidden emu_fiber_switch
    .type emu_fiber_switch, @function
emu_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_fiber_switch, .-emu_fiber_switch
)");

FiberState make_fiber(const FiberStack& stack, size_t colour, void (*entry)()) {
    uint64_t* top = reinterpret_cast<uint64_t*>(stack.low + stack.bytes - colour);
    // Return address of entry(), which never returns: the end of the call chain for debuggers. The stack pointer is
    // then 8 off a multiple of 16, as the ABI has it at a function's entry.
    *--top = 0;
    *--top = reinterpret_cast<uint64_t>(entry);
    for (int i = 0; i < 6; ++i) *--top = 0;
    return top;
}

#else

FiberState make_fiber(const FiberStack& stack, size_t colour, void (*entry)()) {
    static_assert(sizeof(ucontext_t) < kPage, "the context lies at the low end of the stack");
    ucontext_t* context = reinterpret_cast<ucontext_t*>(stack.low);
    getcontext(context);
    context->uc_stack.ss_sp = stack.low + kPage;
    context->uc_stack.ss_size = stack.bytes - kPage - colour;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}

void switch_fiber(FiberState* save, FiberState to, const FiberStack&) {
    ucontext_t mine;
    *save = &mine;
    swapcontext(&mine, static_cast<ucontext_t*>(to));
}

#endif

}  // namespace emu
