// memory.cpp: see memory.h.
#include "memory.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

#include "fiber.h"
#include "result.h"
#include "worker.h"

namespace emu {

namespace {

// Address space only; the check build needs eight times as much beside it.
#ifdef EMU_CHECK
constexpr size_t kReserve = size_t{1} << 36;
#else
constexpr size_t kReserve = size_t{1} << 38;
#endif
constexpr size_t kCapacity = size_t{1} << 34;  // what the device says it has
constexpr size_t kAlign = 256;
constexpr size_t kFront = 256;  // guard bytes in front, at least
constexpr unsigned char kGuard = 0xfd;

size_t round_up(size_t v, size_t unit) { return (v + unit - 1) / unit * unit; }

void* reserve_pages(size_t bytes, int protection) {
    void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("emulated device: cannot reserve address space");
        abort();
    }
    return p;
}

// First byte of [from, to) that is not the guard pattern, or 0.
uintptr_t first_changed(uintptr_t from, uintptr_t to) {
    for (uintptr_t at = from; at < to; ++at) {
        if (*reinterpret_cast<const unsigned char*>(at) != kGuard) return at;
    }
    return 0;
}

}  // namespace

Heap::Heap(const char* name, size_t reserve, size_t capacity) : name_(name), reserve_(reserve), capacity_(capacity) {
    base_ = reinterpret_cast<uintptr_t>(reserve_pages(reserve, PROT_NONE));
}

int Heap::allocate(size_t bytes, void** out) {
    if (bytes == 0) return kInvalidValue;
    if (bytes > capacity_ || live_bytes_ + bytes > capacity_) return kOutOfMemory;
    const size_t mapped = round_up(round_up(bytes, kAlign) + kFront, kPage);
    Allocation made{};
    if (next_ + mapped + kPage <= reserve_) {
        made.low = base_ + next_;
        next_ += mapped + kPage;
    } else {
        auto old = reusable_.begin();
        while (old != reusable_.end() && old->high - old->low < mapped) ++old;
        if (old == reusable_.end()) return kOutOfMemory;
        made.low = old->low;
        freed_.erase(old->data);
        reusable_.erase(old);
    }
    made.high = made.low + mapped;
    made.data = made.high - round_up(bytes, kAlign);
    made.bytes = bytes;
    if (mprotect(reinterpret_cast<void*>(made.low), mapped, PROT_READ | PROT_WRITE) != 0) return kOutOfMemory;
    memset(reinterpret_cast<void*>(made.low), kGuard, made.data - made.low);
    memset(reinterpret_cast<void*>(made.data), 0xff, bytes);
    memset(reinterpret_cast<void*>(made.data + bytes), kGuard, made.high - made.data - bytes);
    live_[made.data] = made;
    live_bytes_ += bytes;
    *out = reinterpret_cast<void*>(made.data);
    if (this == &device_heap()) check_memory_new(made);
    return kSuccess;
}

int Heap::release(void* p) {
    const auto found = live_.find(reinterpret_cast<uintptr_t>(p));
    if (found == live_.end()) return kInvalidValue;
    const Allocation old = found->second;
    live_.erase(found);
    live_bytes_ -= old.bytes;
    if (this == &device_heap()) check_memory_freed(old);
    madvise(reinterpret_cast<void*>(old.low), old.high - old.low, MADV_DONTNEED);
    mprotect(reinterpret_cast<void*>(old.low), old.high - old.low, PROT_NONE);
    freed_[old.data] = old;
    reusable_.push_back(old);
    return kSuccess;
}

const Allocation* Heap::find(const void* p, size_t bytes) const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(p);
    auto after = live_.upper_bound(at);
    if (after == live_.begin()) return nullptr;
    const Allocation& one = std::prev(after)->second;
    if (at - one.data > one.bytes || bytes > one.bytes - (at - one.data)) return nullptr;
    return &one;
}

std::string Heap::describe(const void* p) const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(p);
    char text[200];
    for (const auto* map : {&live_, &freed_}) {
        for (const auto& entry : *map) {
            const Allocation& one = entry.second;
            if (at < one.low || at >= one.high + kPage) continue;
            const char* state = map == &freed_ ? "freed " : "";
            if (at < one.data) {
                snprintf(text, sizeof(text), "%p: %zu bytes before a %s%s allocation of %zu bytes at %p", p,
                         static_cast<size_t>(one.data - at), state, name_, one.bytes,
                         reinterpret_cast<void*>(one.data));
            } else if (at >= one.data + one.bytes) {
                snprintf(text, sizeof(text), "%p: %zu bytes past the end of a %s%s allocation of %zu bytes at %p", p,
                         static_cast<size_t>(at - one.data - one.bytes), state, name_, one.bytes,
                         reinterpret_cast<void*>(one.data));
            } else {
                snprintf(text, sizeof(text), "%p: byte %zu of a %s%s allocation of %zu bytes", p,
                         static_cast<size_t>(at - one.data), state, name_, one.bytes);
            }
            return text;
        }
    }
    snprintf(text, sizeof(text), "%p: %s memory that was never allocated", p, name_);
    return text;
}

bool Heap::guards_intact(std::string* what) const {
    for (const auto& entry : live_) {
        const Allocation& one = entry.second;
        uintptr_t changed = first_changed(one.data - kFront, one.data);
        if (changed == 0) changed = first_changed(one.data + one.bytes, one.high);
        if (changed == 0) continue;
        *what = "write outside of an allocation, " + describe(reinterpret_cast<void*>(changed));
        return false;
    }
    return true;
}

std::string Heap::list_live() const {
    std::string text;
    size_t listed = 0;
    for (const auto& entry : live_) {
        char line[80];
        snprintf(line, sizeof(line), "\n  %zu bytes at %p", entry.second.bytes, reinterpret_cast<void*>(entry.first));
        text += line;
        if (++listed == 16) break;
    }
    return text;
}

Heap& device_heap() {
    static Heap heap("device", kReserve, kCapacity);
    return heap;
}

Heap& pinned_heap() {
    static Heap heap("pinned host", kReserve / 4, kCapacity);
    return heap;
}

std::string describe_address(const void* p) {
    if (device_heap().in_range(p)) return device_heap().describe(p);
    char text[120];
    if (pinned_heap().in_range(p)) {
        snprintf(text, sizeof(text), "%p: pinned host memory, which we do not give to kernels", p);
    } else {
        snprintf(text, sizeof(text), "%p: not device memory", p);
    }
    return text;
}

// One bit per sector of the whole reservation; only touched pages of these maps take memory.
namespace {
constexpr size_t kMapBytes = kReserve / kSector / 8;
unsigned char* sector_map(bool write) {
    static unsigned char* const maps[2] = {
        static_cast<unsigned char*>(reserve_pages(kMapBytes, PROT_READ | PROT_WRITE)),
        static_cast<unsigned char*>(reserve_pages(kMapBytes, PROT_READ | PROT_WRITE))};
    return maps[write ? 1 : 0];
}
}  // namespace

void tracking_start() {
    madvise(sector_map(false), kMapBytes, MADV_DONTNEED);
    madvise(sector_map(true), kMapBytes, MADV_DONTNEED);
}

void track(const void* p, unsigned bytes, bool write) {
    const Heap& heap = device_heap();
    if (!heap.in_range(p)) return;
    const uintptr_t at = reinterpret_cast<uintptr_t>(p) - heap.base();
    for (uintptr_t sector = at / kSector; sector <= (at + bytes - 1) / kSector; ++sector) {
        if (current.trace != nullptr) {
            const uint32_t entry = static_cast<uint32_t>(sector) << 1 | (write ? 1u : 0u);
            if (current.trace->empty() || current.trace->back() != entry) current.trace->push_back(entry);
        }
        unsigned char* byte = sector_map(write) + sector / 8;
        const unsigned char bit = static_cast<unsigned char>(1u << (sector % 8));
        if ((*byte & bit) != 0) continue;
        if ((__atomic_fetch_or(byte, bit, __ATOMIC_RELAXED) & bit) != 0) continue;
        if (write) {
            ++current.counters.sectors_written;
        } else {
            ++current.counters.sectors_read;
        }
    }
}

}  // namespace emu
