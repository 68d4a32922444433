// emulator.h: control of the emulated driver, for tests. Exported beside the CUDA driver API by the emulated
// libcuda.so.
// All functions are thread-safe. What they set holds for the whole process, except where it says so.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Order in which blocks, warps and lanes run, for work the calling thread waits for, and in which of several possible
// streams goes next: 0 ascending, 1 descending, 2 random by `seed`. A correct kernel gives the same bits in every
// order. Streams: ascending runs only what the caller waits for, descending runs everything else first. Returns 0, or 1
// if kind is unknown.
int emu_set_order(int kind, uint64_t seed);

// OS threads that share the blocks of a launch (default 2). Results do not depend on it.
int emu_set_threads(int n);

// 1: count the distinct 32-byte sectors each launch reads and writes (slower).
int emu_set_tracking(int on);

// Models a cache of so many bytes in front of device memory, empty at first, with `running` blocks at work at once; 0
// bytes: none.
// See cache.h. Copies do not go through it.
int emu_set_cache(uint64_t bytes, uint32_t running);

// Text of the last failure (illegal address, deadlock, refused call, ...), empty if none. Returns its length; writes at
// most len - 1 bytes and a zero.
size_t emu_last_report(char* buf, size_t len);

// Forgets a sticky error (a failed kernel), queued work and the last report, as a new process would.
int emu_reset(void);

// "launches", "allocations", "copies", "graph_launches", "live_bytes", "host_bytes" (copied to and from the device),
// "waits" (calls in which the host waited for work that was not done), "leaks" (allocations alive when the context was
// released), "lookups_failed" (kernels asked of a module that has none of that name), "reports" (check build). Unknown
// names give UINT64_MAX.
uint64_t emu_counter(const char* name);
int emu_reset_counters(void);  // all of them but live_bytes, and the statistics of kernels

// Kernels, sorted by name.
uint32_t emu_kernel_count(void);
const char* emu_kernel_name(uint32_t i);  // NULL beyond the end
size_t emu_kernel_params_size(uint32_t i);
uint32_t emu_kernel_threads(uint32_t i);
const char* emu_kernel_file(uint32_t i);

enum {
    EMU_CALLS,           // launches
    EMU_GLOBAL_READ,     // bytes, as requested by the threads
    EMU_GLOBAL_WRITTEN,  // bytes
    EMU_SHARED_MOVED,    // bytes by ldmatrix and cp.async
    EMU_MMA,             // m16n8k16 operations
    EMU_BLOCKS,
    EMU_SECTORS_READ,  // distinct 32-byte sectors, summed over launches; 0 unless tracking
    EMU_SECTORS_WRITTEN,
    EMU_STATS
};
int emu_kernel_stats(const char* name, uint64_t out[EMU_STATS]);  // 0, or 1 if there is no such kernel

// ldmatrix: out[0] phases (8 rows of 16 bytes), out[1] wavefronts; equal if no access conflicts.
int emu_kernel_banks(const char* name, uint64_t out[2]);

// While a cache is modelled: bytes that launches read from memory into it, and bytes written back.
int emu_kernel_memory(const char* name, uint64_t out[2]);

// Runs a kernel now, without streams. `shared`: bytes of dynamic shared memory. Returns a CUresult.
int emu_launch(const char* name, const uint32_t grid[3], uint32_t shared, const void* params);

// Check build: number of distinct reports since emu_reset_reports, and their text. The plain build always has none.
uint64_t emu_reports(void);
size_t emu_reports_text(char* buf, size_t len);
int emu_reset_reports(void);
int emu_is_check_build(void);

// Check build: a part of an allocation that kernels must not touch (the gaps a test leaves around its tensors), and
// back.
// Both builds fill the part with 0xff when it is forbidden.
int emu_forbid(const void* device_pointer, size_t bytes);
int emu_allow(const void* device_pointer, size_t bytes);

#ifdef __cplusplus
}
#endif
