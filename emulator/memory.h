// memory.h: device memory and pinned host memory. Every allocation ends at a guard page; freed pages become
// inaccessible and are reused last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>

namespace emu {

struct Allocation {
    uintptr_t data;  // 256-byte aligned, as the driver's
    size_t bytes;    // asked for
    uintptr_t low;   // mapped pages: [low, high), then a guard page
    uintptr_t high;
};

class Heap {
  public:
    Heap(const char* name, size_t reserve, size_t capacity);

    int allocate(size_t bytes, void** out);  // Result; the memory holds 0xff
    int release(void* p);                    // Result; unknown pointers and double frees are kInvalidValue

    // The live allocation that holds all of [p, p + bytes), or null.
    const Allocation* find(const void* p, size_t bytes) const;
    bool in_range(const void* p) const {
        const uintptr_t at = reinterpret_cast<uintptr_t>(p);
        return at - base_ < reserve_;
    }
    std::string describe(const void* p) const;
    // Bytes just outside the allocations, within their pages, that no longer hold the guard pattern.
    bool guards_intact(std::string* what) const;

    uintptr_t base() const { return base_; }
    size_t live_bytes() const { return live_bytes_; }
    size_t live_count() const { return live_.size(); }
    size_t capacity() const { return capacity_; }
    std::string list_live() const;

  private:
    const char* name_;
    uintptr_t base_ = 0;
    size_t reserve_, capacity_, next_ = 0, live_bytes_ = 0;
    std::map<uintptr_t, Allocation> live_;   // by data
    std::map<uintptr_t, Allocation> freed_;  // by data, for messages
    std::deque<Allocation> reusable_;        // oldest first
};

Heap& device_heap();
Heap& pinned_heap();
std::string describe_address(const void* p);

// What a device moves at least.
constexpr size_t kSector = 32;

// Distinct sectors touched by the current launch; see emu_set_tracking.
void tracking_start();

#ifdef EMU_CHECK
void check_memory_new(const Allocation& allocation);
void check_memory_freed(const Allocation& allocation);
void check_memory_written(const void* p, size_t bytes);  // by a copy or a memset
void check_memory_copied(const void* to, const void* from, size_t bytes);
#else
inline void check_memory_new(const Allocation&) {}
inline void check_memory_freed(const Allocation&) {}
inline void check_memory_written(const void*, size_t) {}
inline void check_memory_copied(const void*, const void*, size_t) {}
#endif

}  // namespace emu
