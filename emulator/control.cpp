// control.cpp: see emulator.h.
#include "emulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cache.h"
#include "driver.h"
#include "fault.h"
#include "memory.h"
#include "result.h"

using namespace emu;

namespace {
std::lock_guard<std::mutex> locked() { return std::lock_guard<std::mutex>(driver().lock); }

size_t copy_text(const std::string& text, char* buf, size_t len) {
    if (buf != nullptr && len > 0) {
        const size_t n = std::min(len - 1, text.size());
        memcpy(buf, text.data(), n);
        buf[n] = '\0';
    }
    return text.size();
}
}  // namespace

#ifndef EMU_CHECK
namespace emu {
uint64_t check_report_count() { return 0; }
std::string check_report_text() { return {}; }
void check_reset_reports() {}
void check_forbid(const void*, size_t, bool) {}
}  // namespace emu
#endif

EMU_API int emu_set_order(int kind, uint64_t seed) {
    const auto hold = locked();
    if (kind < 0 || kind > 2) return 1;
    schedule() = Schedule{static_cast<Order>(kind), seed};
    return 0;
}

EMU_API int emu_set_threads(int n) {
    const auto hold = locked();
    if (n < 1 || n > 256) return 1;
    settings().threads = n;
    return 0;
}

EMU_API int emu_set_tracking(int on) {
    const auto hold = locked();
    settings().tracking = on != 0;
    return 0;
}

EMU_API int emu_set_cache(uint64_t bytes, uint32_t running) {
    const auto hold = locked();
    cache().configure(bytes, running);
    return 0;
}

EMU_API size_t emu_last_report(char* buf, size_t len) {
    const auto hold = locked();
    return copy_text(driver().report, buf, len);
}

EMU_API int emu_reset(void) {
    const auto hold = locked();
    driver().queue.discard_all();
    driver().sticky = 0;
    driver().report.clear();
    return 0;
}

EMU_API uint64_t emu_counter(const char* name) {
    const auto hold = locked();
    const CallCounters& c = counters();
    if (strcmp(name, "launches") == 0) return c.launches;
    if (strcmp(name, "allocations") == 0) return c.allocations;
    if (strcmp(name, "copies") == 0) return c.copies;
    if (strcmp(name, "graph_launches") == 0) return c.graph_launches;
    if (strcmp(name, "host_bytes") == 0) return c.host_bytes;
    if (strcmp(name, "waits") == 0) return c.waits;
    if (strcmp(name, "leaks") == 0) return c.leaks;
    if (strcmp(name, "lookups_failed") == 0) return c.lookups_failed;
    if (strcmp(name, "live_bytes") == 0) return device_heap().live_bytes();
    if (strcmp(name, "reports") == 0) return check_report_count();
    return UINT64_MAX;
}

EMU_API int emu_reset_counters(void) {
    const auto hold = locked();
    counters() = CallCounters{};
    reset_stats();
    return 0;
}

EMU_API uint32_t emu_kernel_count(void) { return kernel_count(); }

EMU_API const char* emu_kernel_name(uint32_t i) {
    const Kernel* kernel = kernel_at(i);
    return kernel != nullptr ? kernel->name : nullptr;
}

EMU_API const char* emu_kernel_file(uint32_t i) {
    const Kernel* kernel = kernel_at(i);
    return kernel != nullptr ? kernel->file : nullptr;
}

EMU_API size_t emu_kernel_params_size(uint32_t i) {
    const Kernel* kernel = kernel_at(i);
    return kernel != nullptr ? kernel->params_bytes : 0;
}

EMU_API uint32_t emu_kernel_threads(uint32_t i) {
    const Kernel* kernel = kernel_at(i);
    return kernel != nullptr ? kernel->threads : 0;
}

EMU_API int emu_kernel_stats(const char* name, uint64_t out[EMU_STATS]) {
    const auto hold = locked();
    const Kernel* kernel = find_kernel(name);
    if (kernel == nullptr) return 1;
    const KernelStats& stats = stats_of(kernel);
    out[EMU_CALLS] = stats.calls;
    out[EMU_GLOBAL_READ] = stats.counters.global_read;
    out[EMU_GLOBAL_WRITTEN] = stats.counters.global_written;
    out[EMU_SHARED_MOVED] = stats.counters.shared_moved;
    out[EMU_MMA] = stats.counters.mma;
    out[EMU_BLOCKS] = stats.blocks;
    out[EMU_SECTORS_READ] = stats.counters.sectors_read;
    out[EMU_SECTORS_WRITTEN] = stats.counters.sectors_written;
    return 0;
}

EMU_API int emu_kernel_memory(const char* name, uint64_t out[2]) {
    const auto hold = locked();
    const Kernel* kernel = find_kernel(name);
    if (kernel == nullptr) return 1;
    out[0] = stats_of(kernel).counters.memory_read;
    out[1] = stats_of(kernel).counters.memory_written;
    return 0;
}

EMU_API int emu_kernel_banks(const char* name, uint64_t out[2]) {
    const auto hold = locked();
    const Kernel* kernel = find_kernel(name);
    if (kernel == nullptr) return 1;
    out[0] = stats_of(kernel).counters.bank_phases;
    out[1] = stats_of(kernel).counters.bank_wavefronts;
    return 0;
}

EMU_API int emu_launch(const char* name, const uint32_t grid[3], uint32_t shared, const void* params) {
    const auto hold = locked();
    const Kernel* kernel = find_kernel(name);
    if (kernel == nullptr) return refuse(kNotFound, std::string("no kernel ") + name);
    if (shared > kSharedLimit || grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return kInvalidValue;
    prepare_thread_for_faults();
    ++counters().launches;
    const Launch launch{kernel, Index{grid[0], grid[1], grid[2]}, shared, params};
    const Failure failure = run_grid(launch);
    if (failure.code != kSuccess) driver().report = failure.text;
    return failure.code;
}

EMU_API uint64_t emu_reports(void) {
    const auto hold = locked();
    return check_report_count();
}

EMU_API size_t emu_reports_text(char* buf, size_t len) {
    const auto hold = locked();
    return copy_text(check_report_text(), buf, len);
}

EMU_API int emu_reset_reports(void) {
    const auto hold = locked();
    check_reset_reports();
    return 0;
}

EMU_API int emu_is_check_build(void) {
#ifdef EMU_CHECK
    return 1;
#else
    return 0;
#endif
}

EMU_API int emu_forbid(const void* pointer, size_t bytes) {
    const auto hold = locked();
    if (device_heap().find(pointer, bytes) == nullptr) return kInvalidValue;
    memset(const_cast<void*>(pointer), 0xff, bytes);
    check_forbid(pointer, bytes, true);
    return 0;
}

EMU_API int emu_allow(const void* pointer, size_t bytes) {
    const auto hold = locked();
    if (device_heap().find(pointer, bytes) == nullptr) return kInvalidValue;
    check_forbid(pointer, bytes, false);
    return 0;
}

// A profiler that NVTX finds by NVTX_INJECTION64_PATH: prints each range to stderr if EMU_PRINT_RANGES is set. See
// nvtxTypes.h.
namespace {
struct NvtxCallbacks {
    size_t struct_size;
    int (*table)(int module, void**** table, unsigned* bytes);
};
thread_local std::vector<std::string> ranges;

int push_range(const char* name) {
    ranges.emplace_back(name);
    if (getenv("EMU_PRINT_RANGES") != nullptr) fprintf(stderr, "range begins: %s\n", name);
    return static_cast<int>(ranges.size()) - 1;
}

int pop_range() {
    if (ranges.empty()) return -1;
    if (getenv("EMU_PRINT_RANGES") != nullptr) fprintf(stderr, "range ends: %s\n", ranges.back().c_str());
    ranges.pop_back();
    return static_cast<int>(ranges.size());
}
}  // namespace

EMU_API int InitializeInjectionNvtx2(const void* (*export_table)(uint32_t)) {
    const auto* callbacks = static_cast<const NvtxCallbacks*>(export_table(1));
    void*** table = nullptr;
    unsigned bytes = 0;
    if (callbacks == nullptr || callbacks->table(1, &table, &bytes) == 0 || bytes < 12 * sizeof(void*)) return 0;
    *table[9] = reinterpret_cast<void*>(push_range);
    *table[11] = reinterpret_cast<void*>(pop_range);
    return 1;
}
