// check.cpp: the check build. Kernels are compiled with -fsanitize=thread, but against these functions instead of the
// sanitizer's library: every load and store of a kernel calls one. They keep, for each two bytes of shared and of
// device memory, who wrote and who read them last, and find races, accesses out of bounds and reads of memory never
// written, whatever the order in which the threads happened to run.
//
// Two accesses of a block are ordered by a block barrier between them or, within a warp, by __syncwarp. Shuffles and
// matrix operations deliberately do not count. Blocks of one launch are never ordered; launches always are.
#ifdef EMU_CHECK

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <sys/mman.h>

#include "driver.h"
#include "locate.h"
#include "memory.h"
#include "worker.h"

namespace emu {

namespace {

// State of two bytes. An access is 10 bits of thread, 12 of barriers and 7 of __syncwarps passed (modulo, which can
// hide a race 4096 barriers apart, no more) and 3 flags. Blocks are numbered through all launches from kFirstBlock.
struct Cell {
    uint32_t writer, write;  // block and access
    uint32_t reader, read;
};
constexpr uint32_t kNobody = 0, kHost = 1, kFirstBlock = 2, kForbidden = 0xffffffffu;
constexpr uint32_t kManyBlocks = 1, kManyWarps = 2, kManyLanes = 4;  // flags of `read`
constexpr uint32_t kInFlight = 1;                                    // flag of `write`: cp.async not yet waited for

constexpr uint32_t thread_of(uint32_t access) { return access >> 22; }
constexpr uint32_t warp_of(uint32_t access) { return access >> 27; }
constexpr uint32_t barrier_of(uint32_t access) { return access >> 10 & 0xfff; }
constexpr uint32_t sync_of(uint32_t access) { return access >> 3 & 0x7f; }

enum class Problem {
    kNone,
    kReadWrite,
    kWriteWrite,
    kWriteRead,
    kBlocks,
    kUninitialised,
    kForbiddenPart,
    kInFlightAccess
};

struct Access {
    uint32_t block, launch_base;
    uint32_t now;
    bool shared;
};

// One worker, so one set of everything: the check build runs blocks on one OS thread (see run_grid).
uint32_t next_block = kFirstBlock, launch_base = kFirstBlock, this_block = kFirstBlock;
Cell shared_cells[kArenaBytes / 2];
struct Range {
    uint32_t begin, end;
};
std::vector<Range> statics;

constexpr size_t kReserve = size_t{1} << 36;  // of the device heap, in this build
Cell* global_cells() {
    static Cell* const cells = [] {
        void* p = mmap(nullptr, kReserve / 2 * sizeof(Cell), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            perror("emulated device: cannot reserve the check build's shadow memory");
            abort();
        }
        return static_cast<Cell*>(p);
    }();
    return cells;
}
Cell* cell_of(uintptr_t address) { return global_cells() + (address - device_heap().base()) / 2; }

// Whether an earlier access of this block is ordered before `now`.
bool ordered(uint32_t before, uint32_t now) {
    if (thread_of(before) == thread_of(now) || barrier_of(before) != barrier_of(now)) return true;
    return warp_of(before) == warp_of(now) && sync_of(before) != sync_of(now);
}

Problem on_read(Cell& cell, const Access& me) {
    Problem problem = Problem::kNone;
    if (cell.writer == me.block) {
        if ((cell.write & kInFlight) != 0) {
            problem = Problem::kInFlightAccess;
        } else if (!ordered(cell.write, me.now)) {
            problem = Problem::kWriteRead;
        }
    } else if (me.shared || cell.writer == kNobody) {
        problem = Problem::kUninitialised;
    } else if (cell.writer >= me.launch_base) {
        problem = Problem::kBlocks;
    }
    uint32_t flags = 0;
    if (cell.reader == me.block) {
        flags = cell.read & kManyBlocks;
        if (barrier_of(cell.read) == barrier_of(me.now)) {
            flags |= cell.read & kManyWarps;
            if (warp_of(cell.read) != warp_of(me.now)) {
                flags |= kManyWarps;
            } else if (sync_of(cell.read) == sync_of(me.now)) {
                flags |= cell.read & kManyLanes;
                if (thread_of(cell.read) != thread_of(me.now)) flags |= kManyLanes;
            }
        }
    } else if (!me.shared && cell.reader >= me.launch_base) {
        flags = kManyBlocks;
    }
    cell.reader = me.block;
    cell.read = me.now | flags;
    return problem;
}

Problem on_write(Cell& cell, const Access& me, uint32_t flag) {
    Problem problem = Problem::kNone;
    if (cell.writer == me.block) {
        if ((cell.write & kInFlight) != 0) {
            problem = Problem::kInFlightAccess;
        } else if (!ordered(cell.write, me.now)) {
            problem = Problem::kWriteWrite;
        }
    } else if (!me.shared && cell.writer >= me.launch_base) {
        problem = Problem::kBlocks;
    }
    if (cell.reader == me.block) {
        if ((cell.read & kManyBlocks) != 0) {
            problem = Problem::kBlocks;
        } else if (barrier_of(cell.read) == barrier_of(me.now)) {
            const bool own = thread_of(cell.read) == thread_of(me.now);
            const bool same_sync = sync_of(cell.read) == sync_of(me.now);
            const bool lanes = own && same_sync && (cell.read & kManyLanes) != 0;
            if ((cell.read & kManyWarps) != 0 || lanes || !ordered(cell.read, me.now)) problem = Problem::kReadWrite;
        }
    } else if (!me.shared && cell.reader >= me.launch_base) {
        problem = Problem::kBlocks;
    }
    cell.writer = me.block;
    cell.write = me.now | flag;
    return problem;
}

// What was found: each place once.
struct Report {
    std::string text;
    const void* pc;
};
// Never destroyed: print_reports runs after the destructors of this file's objects.
std::vector<Report>& reports = *new std::vector<Report>;
std::set<std::tuple<int, const void*, const Kernel*>>& seen =
    *new std::set<std::tuple<int, const void*, const Kernel*>>;
uint64_t report_count = 0;
constexpr size_t kMostReports = 200;

void report(int kind, const void* pc, const Worker& worker, uint32_t thread, const std::string& what) {
    if (!seen.emplace(kind, pc, worker.launch().kernel).second) return;
    ++report_count;
    if (reports.size() >= kMostReports) return;
    const Index& block = current.block;
    char where[200];
    snprintf(where, sizeof(where), "kernel %s, block (%u, %u, %u), thread %u: ", worker.launch().kernel->name, block.x,
             block.y, block.z, thread);
    reports.push_back(Report{where + what, pc});
}

std::string memory_name(bool shared, uintptr_t address) {
    if (!shared) return describe_address(reinterpret_cast<void*>(address));
    const uint32_t offset = static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(current.arena));
    if (offset < current.dynamic_bytes) return "dynamic shared memory, byte " + std::to_string(offset);
    for (size_t i = 0; i < statics.size(); ++i) {
        if (offset >= statics[i].begin && offset < statics[i].end) {
            return "static shared array " + std::to_string(i) + ", byte " + std::to_string(offset - statics[i].begin);
        }
    }
    return "shared memory, byte " + std::to_string(offset);
}

__attribute__((noinline)) void report_problem(Problem problem, bool write, bool shared, uintptr_t address,
                                              const Cell& before, const Lane& lane, const void* pc) {
    const char* verb = write ? "writes " : "reads ";
    const std::string what = verb + memory_name(shared, address);
    std::string text;
    switch (problem) {
        case Problem::kNone: return;
        case Problem::kReadWrite:
            text = "race: " + what + ", which thread " + std::to_string(thread_of(before.read)) +
                   " reads, without a barrier between";
            break;
        case Problem::kWriteWrite:
        case Problem::kWriteRead:
            text = "race: " + what + ", which thread " + std::to_string(thread_of(before.write)) +
                   " wrote, without a barrier between";
            break;
        case Problem::kBlocks:
            text = "race between blocks: " + what + ", which another block uses in the same launch";
            break;
        case Problem::kUninitialised: text = "uninitialised: " + what + ", which nothing has written"; break;
        case Problem::kForbiddenPart: text = "out of bounds: " + what + ", a part that was marked as forbidden"; break;
        case Problem::kInFlightAccess:
            text = what + " while cp.async of thread " + std::to_string(thread_of(before.write)) +
                   " into it is not waited for";
            break;
    }
    report(static_cast<int>(problem), pc, *this_worker, lane.thread, text);
}

Access access_of(const Lane& lane, bool shared) {
    const uint32_t barrier = this_worker->barrier_epoch & 0xfff, sync = lane.warp->sync_epoch & 0x7f;
    return Access{this_block, launch_base, lane.thread << 22 | barrier << 10 | sync << 3, shared};
}

// Bytes that are accessed one at a time share a cell with their neighbour: no race check for those.
void visit(Cell* cells, uintptr_t address, uint32_t bytes, bool write, uint32_t flag, const Access& me,
           const Lane& lane, const void* pc) {
    const uint32_t count = static_cast<uint32_t>((address % 2 + bytes + 1) / 2);
    for (uint32_t i = 0; i < count; ++i) {
        Cell& cell = cells[i];
        const Cell before = cell;
        Problem problem;
        if (!me.shared && cell.reader == kForbidden) {
            problem = Problem::kForbiddenPart;
        } else {
            problem = write ? on_write(cell, me, flag) : on_read(cell, me);
            if (bytes == 1 && problem != Problem::kUninitialised) problem = Problem::kNone;
        }
        if (__builtin_expect(problem != Problem::kNone, 0)) {
            report_problem(problem, write, me.shared, address + 2 * i, before, lane, pc);
            return;
        }
    }
}

bool shared_valid(uint32_t begin, uint32_t end) {
    if (end <= current.dynamic_bytes) return true;
    for (const Range& range : statics) {
        if (begin >= range.begin && end <= range.end) return true;
    }
    return false;
}

void visit_shared(const Lane& lane, uint32_t offset, uint32_t bytes, bool write, uint32_t flag, const void* pc) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(current.arena) + offset;
    if (__builtin_expect(!shared_valid(offset, offset + bytes), 0)) {
        constexpr int kOutOfBounds = 100;
        report(kOutOfBounds, pc, *this_worker, lane.thread,
               std::string("out of bounds: ") + (write ? "writes " : "reads ") + std::to_string(bytes) + " bytes of " +
                   memory_name(true, address));
        return;
    }
    visit(shared_cells + offset / 2, address, bytes, write, flag, access_of(lane, true), lane, pc);
}

void visit_global(const Lane& lane, uintptr_t address, uint32_t bytes, bool write, const void* pc) {
    static Allocation last{};
    static uint32_t last_launch = 0;
    if (last_launch != launch_base || address - last.data >= last.bytes || bytes > last.bytes - (address - last.data)) {
        const Allocation* found = device_heap().find(reinterpret_cast<void*>(address), bytes);
        if (found == nullptr) {
            constexpr int kOutOfBounds = 101;
            report(kOutOfBounds, pc, *this_worker, lane.thread,
                   std::string("out of bounds: ") + (write ? "writes " : "reads ") + std::to_string(bytes) +
                       " bytes, " + describe_address(reinterpret_cast<void*>(address)));
            return;
        }
        last = *found;
        last_launch = launch_base;
    }
    visit(cell_of(address), address, bytes, write, 0, access_of(lane, false), lane, pc);
}

inline void on_access(const void* p, uint32_t bytes, bool write, const void* pc) {
    Worker* worker = this_worker;
    if (worker == nullptr || !worker->in_fiber) return;
    const uintptr_t address = reinterpret_cast<uintptr_t>(p);
    const uintptr_t offset = address - reinterpret_cast<uintptr_t>(current.arena);
    if (offset < kArenaBytes) {
        visit_shared(worker->self(), static_cast<uint32_t>(offset), bytes, write, 0, pc);
    } else if (device_heap().in_range(p)) {
        visit_global(worker->self(), address, bytes, write, pc);
    }
}

void fill_cells(const void* p, size_t bytes, Cell value) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(p);
    Cell* cells = cell_of(address);
    const size_t count = (address % 2 + bytes + 1) / 2;
    for (size_t i = 0; i < count; ++i) cells[i] = value;
}

}  // namespace

void check_launch_start(uint64_t blocks) {
    if (next_block + blocks >= kForbidden) next_block = kFirstBlock;  // after 4e9 blocks: a few reports may be wrong
    launch_base = next_block;
    next_block += static_cast<uint32_t>(blocks);
    this_block = launch_base - 1;
}

void check_block_start(Worker&) {
    ++this_block;
    statics.clear();
}

void check_static(uint32_t offset, uint32_t bytes) { statics.push_back(Range{offset, offset + bytes}); }

void check_shared(const Lane& lane, uint32_t offset, uint32_t bytes, bool write, const void* pc) {
    visit_shared(lane, offset, bytes, write, 0, pc);
}

void check_async_issue(const Lane& lane, uint32_t offset, uint32_t bytes, const void* pc) {
    visit_shared(lane, offset, bytes, true, kInFlight, pc);
}

// A write of the waiting thread, now. The cells are its own since the issue.
void check_async_done(const Lane& lane, uint32_t offset, uint32_t bytes) {
    const Access me = access_of(lane, true);
    for (uint32_t i = offset / 2; i < (offset + bytes) / 2; ++i) {
        shared_cells[i].writer = me.block;
        shared_cells[i].write = me.now;
    }
}

void check_global_read(const Lane& lane, const void* p, uint32_t bytes, const void* pc) {
    if (device_heap().in_range(p)) visit_global(lane, reinterpret_cast<uintptr_t>(p), bytes, false, pc);
}

void check_memory_new(const Allocation& allocation) {
    fill_cells(reinterpret_cast<void*>(allocation.data), allocation.bytes, Cell{});
}

// Gives whole pages of shadow back.
void check_memory_freed(const Allocation& allocation) {
    const uintptr_t low = (reinterpret_cast<uintptr_t>(cell_of(allocation.data)) + kPage - 1) / kPage * kPage;
    const uintptr_t high = reinterpret_cast<uintptr_t>(cell_of(allocation.data + allocation.bytes)) / kPage * kPage;
    if (high > low) madvise(reinterpret_cast<void*>(low), high - low, MADV_DONTNEED);
}

// Copies and memsets. Parts that are forbidden to kernels stay so: tests fill them themselves.
void check_memory_written(const void* p, size_t bytes) {
    Cell* cells = cell_of(reinterpret_cast<uintptr_t>(p));
    const size_t count = (reinterpret_cast<uintptr_t>(p) % 2 + bytes + 1) / 2;
    for (size_t i = 0; i < count; ++i) {
        if (cells[i].reader != kForbidden) cells[i] = Cell{kHost, 0, kNobody, 0};
    }
}

void check_memory_copied(const void* to, const void* from, size_t bytes) {
    if ((reinterpret_cast<uintptr_t>(to) + reinterpret_cast<uintptr_t>(from)) % 2 != 0) {
        check_memory_written(to, bytes);
        return;
    }
    Cell* target = cell_of(reinterpret_cast<uintptr_t>(to));
    const Cell* source = cell_of(reinterpret_cast<uintptr_t>(from));
    const size_t count = (reinterpret_cast<uintptr_t>(to) % 2 + bytes + 1) / 2;
    for (size_t i = 0; i < count; ++i) {
        if (target[i].reader != kForbidden)
            target[i] = Cell{source[i].writer == kNobody ? kNobody : kHost, 0, kNobody, 0};
    }
}

void check_forbid(const void* p, size_t bytes, bool forbidden) {
    fill_cells(p, bytes, Cell{kNobody, 0, forbidden ? kForbidden : kNobody, 0});
}

uint64_t check_report_count() { return report_count; }

std::string check_report_text() {
    std::string text;
    for (const Report& one : reports) text += one.text + locate(one.pc) + "\n";
    return text;
}

void check_reset_reports() {
    reports.clear();
    seen.clear();
    report_count = 0;
}

}  // namespace emu

// For programs that do not ask: EMU_PRINT_REPORTS=1 prints what was found when the process ends.
__attribute__((destructor)) static void print_reports() {
    if (getenv("EMU_PRINT_REPORTS") != nullptr && emu::report_count != 0)
        fputs(emu::check_report_text().c_str(), stderr);
}

// The interface of -fsanitize=thread. Accesses to anything but shared and device memory are of no interest.
#define EMU_TSAN extern "C" __attribute__((visibility("default"))) void
#define EMU_TSAN_ACCESS(bytes)                                                                                       \
    EMU_TSAN __tsan_read##bytes(void* p) { emu::on_access(p, bytes, false, __builtin_return_address(0)); }           \
    EMU_TSAN __tsan_write##bytes(void* p) { emu::on_access(p, bytes, true, __builtin_return_address(0)); }           \
    EMU_TSAN __tsan_unaligned_read##bytes(void* p) { emu::on_access(p, bytes, false, __builtin_return_address(0)); } \
    EMU_TSAN __tsan_unaligned_write##bytes(void* p) { emu::on_access(p, bytes, true, __builtin_return_address(0)); } \
    EMU_TSAN __tsan_volatile_read##bytes(void* p) { emu::on_access(p, bytes, false, __builtin_return_address(0)); }  \
    EMU_TSAN __tsan_volatile_write##bytes(void* p) { emu::on_access(p, bytes, true, __builtin_return_address(0)); }  \
    EMU_TSAN __tsan_read_write##bytes(void* p) {                                                                     \
        emu::on_access(p, bytes, false, __builtin_return_address(0));                                                \
        emu::on_access(p, bytes, true, __builtin_return_address(0));                                                 \
    }
EMU_TSAN_ACCESS(1)
EMU_TSAN_ACCESS(2)
EMU_TSAN_ACCESS(4)
EMU_TSAN_ACCESS(8)
EMU_TSAN_ACCESS(16)
EMU_TSAN __tsan_read_range(void* p, size_t bytes) {
    emu::on_access(p, static_cast<uint32_t>(bytes), false, __builtin_return_address(0));
}
EMU_TSAN __tsan_write_range(void* p, size_t bytes) {
    emu::on_access(p, static_cast<uint32_t>(bytes), true, __builtin_return_address(0));
}
EMU_TSAN __tsan_init() {}
EMU_TSAN __tsan_func_entry(void*) {}
EMU_TSAN __tsan_func_exit() {}
EMU_TSAN __tsan_vptr_update(void**, void*) {}
EMU_TSAN __tsan_vptr_read(void**) {}

#endif
