// fault.cpp: see fault.h. The handler sends the thread to report_fault on a stack of its own, which abandons the block;
// faults outside of kernels go to whoever handled them before (Rust's stack overflow message, for one).
#include "fault.h"

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include <sys/mman.h>
#include <ucontext.h>

#include "worker.h"

namespace emu {

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction previous[NSIG];

void report_fault() { this_worker->fail_fault(); }

void pass_on(int signal, siginfo_t* info, void* context) {
    const struct sigaction& before = previous[signal];
    if ((before.sa_flags & SA_SIGINFO) != 0) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
        ::signal(signal, SIG_DFL);  // the instruction faults again
    } else {
        before.sa_handler(signal);
    }
}

void on_signal(int signal, siginfo_t* info, void* context) {
    Worker* worker = this_worker;
    if (worker == nullptr || !worker->in_fiber) {
        pass_on(signal, info, context);
        return;
    }
    worker->in_fiber = false;  // a fault while reporting is a bug of ours
    worker->fault_address = info->si_addr;
    worker->fault_signal = signal == SIGSEGV || signal == SIGBUS ? 0 : signal;
#if defined(__x86_64__)
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    worker->fault_pc = reinterpret_cast<const void*>(registers[REG_RIP]);
    // the ABI's alignment at a function's entry
    registers[REG_RSP] = static_cast<greg_t>(reinterpret_cast<uintptr_t>(worker->fault_stack_top) - 8);
    registers[REG_RIP] = static_cast<greg_t>(reinterpret_cast<uintptr_t>(report_fault));
#else
    sigset_t none;
    sigemptyset(&none);
    sigaddset(&none, signal);
    pthread_sigmask(SIG_UNBLOCK, &none, nullptr);
    report_fault();
#endif
}

}  // namespace

void prepare_thread_for_faults() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action;
        memset(&action, 0, sizeof(action));
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        for (int signal : kSignals) sigaction(signal, &action, &previous[signal]);
    });
    stack_t have;
    if (sigaltstack(nullptr, &have) == 0 && (have.ss_flags & SS_DISABLE) == 0) return;
    constexpr size_t kBytes = 64 * 1024;
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) abort();
    stack_t stack;
    memset(&stack, 0, sizeof(stack));
    stack.ss_sp = memory;
    stack.ss_size = kBytes;
    sigaltstack(&stack, nullptr);
}

}  // namespace emu
