// memory_access.cpp: loads, stores and cp.async, every address checked: alignment, bounds of allocations, shared arrays
// and parameters, shared memory read before it is written or while a copy not waited for is writing it.
#include <cstdio>

#include "../memory.h"
#include "../result.h"
#include "lanes.h"

namespace ptx {

namespace {

u8* global_at(Warp& w, u64 at, u32 bytes, const char* what) {
    Block& b = *w.block;
    for (size_t k = 0; k < b.ranges.size(); ++k) {
        if (at >= b.ranges[k].low && at + bytes <= b.ranges[k].high) {
            if (k > 0) std::swap(b.ranges[k], b.ranges[k - 1]);
            return reinterpret_cast<u8*>(at);
        }
    }
    const void* p = reinterpret_cast<const void*>(at);
    const emu::Allocation* found = emu::device_heap().find(p, bytes);
    if (found == nullptr) found = emu::pinned_heap().find(p, bytes);
    if (found != nullptr) {
        b.ranges.push_back(Range{found->data, found->data + found->bytes});
        return reinterpret_cast<u8*>(at);
    }
    fault(emu::kIllegalAddress, "%s of %u bytes at 0x%llx, outside of every allocation (%s)", what, bytes,
          static_cast<unsigned long long>(at), emu::describe_address(p).c_str());
}

inline void shared_bounds(Warp& w, u64 at, u32 bytes) {
    const Block& b = *w.block;
    if (at < kSharedStart || at + bytes > b.shared_top || b.shadow[at] == kOutside ||
        b.shadow[at + bytes - 1] == kOutside)
        fault(emu::kIllegalAddress, "%u bytes at 0x%llx of shared memory, outside of what the block has", bytes,
              static_cast<unsigned long long>(at));
}

}  // namespace

void check_aligned(u64 at, u32 bytes) {
    if (at & (bytes - 1))
        fault(emu::kMisalignedAddress, "address 0x%llx is not aligned to %u bytes", static_cast<unsigned long long>(at),
              bytes);
}

const u8* shared_read(Warp& w, const Inst& i, u64 at, u32 bytes) {
    shared_bounds(w, at, bytes);
    const u8* s = &w.block->shadow[at];
    u8 any = 0;
    for (u32 k = 0; k < bytes; ++k) any |= static_cast<u8>(s[k] ^ 1);
    if (any != 0) {
        bool pending = false;
        for (u32 k = 0; k < bytes; ++k) pending |= s[k] == kPending;
        warn(w, i,
             pending ? "reads shared memory that a cp.async not waited for is writing"
                     : "reads shared memory that nobody wrote");
    }
    return &w.block->shared[at];
}

namespace {

u8* shared_write(Warp& w, const Inst& i, u64 at, u32 bytes) {
    shared_bounds(w, at, bytes);
    u8* s = &w.block->shadow[at];
    for (u32 k = 0; k < bytes; ++k) {
        if (s[k] == kPending) {
            warn(w, i, "writes shared memory that a cp.async not waited for is writing");
            break;
        }
    }
    memset(s, kWritten, bytes);
    return &w.block->shared[at];
}

template <Space kSpace> inline u8* resolve(Warp& w, const Inst& i, u32 l, u64 at, u32 bytes, bool write) {
    check_aligned(at, bytes);
    if (kSpace == Space::kShared)
        return write ? shared_write(w, i, at, bytes) : const_cast<u8*>(shared_read(w, i, at, bytes));
    if (kSpace == Space::kParam) {
        if (write || at < kParamBase || at - kParamBase + bytes > w.block->params.size())
            fault(emu::kIllegalAddress, "%u bytes at %lld of the parameters, which have %zu", bytes,
                  static_cast<long long>(at - kParamBase), w.block->params.size());
        return &w.block->params[at - kParamBase];
    }
    if (kSpace == Space::kLocal) {
        if (at + bytes > w.kernel->local_bytes)
            fault(emu::kIllegalAddress, "local memory at %llu", static_cast<unsigned long long>(at));
        return w.local + static_cast<size_t>(l) * w.kernel->local_bytes + at;
    }
    if (kSpace == Space::kGeneric) {
        if (at >= kSharedBase && at < kSharedBase + (u64{1} << 32))
            return resolve<Space::kShared>(w, i, l, at - kSharedBase, bytes, write);
        if (at >= kLocalBase && at < kLocalBase + (u64{1} << 32))
            return resolve<Space::kLocal>(w, i, l, at - kLocalBase, bytes, write);
        if (at >= kParamBase && at < kParamBase + (u64{1} << 32))
            return resolve<Space::kParam>(w, i, l, at, bytes, write);
    }
    auto& counters = emu::current.counters;
    (write ? counters.global_written : counters.global_read) += bytes;
    u8* p = global_at(w, at, bytes, write ? "store" : "load");
    if (emu::current.tracking) emu::track(p, bytes, write);
    return p;
}

template <Space kSpace, class T, class Address> void load(Warp& w, const Inst& i) {
    const Address* a = reg<Address>(w, i.a);
    const u32 n = i.count;
    // Destinations may overlap the address.
    T values[8][32];
    ACTIVE {
        const u64 at = static_cast<Address>(a[l] + static_cast<Address>(i.imm));
        const u8* p = resolve<kSpace>(w, i, l, at, static_cast<u32>(sizeof(T)) * n, false);
        for (u32 k = 0; k < n; ++k) memcpy(&values[k][l], p + k * sizeof(T), sizeof(T));
    }
    for (u32 k = 0; k < n; ++k) {
        T* d = reg<T>(w, i.v[k]);
        ACTIVE d[l] = values[k][l];
    }
}
template <Space kSpace, class T, class Address> void store(Warp& w, const Inst& i) {
    const Address* a = reg<Address>(w, i.a);
    const u32 n = i.count;
    ACTIVE {
        const u64 at = static_cast<Address>(a[l] + static_cast<Address>(i.imm));
        u8* p = resolve<kSpace>(w, i, l, at, static_cast<u32>(sizeof(T)) * n, true);
        for (u32 k = 0; k < n; ++k) memcpy(p + k * sizeof(T), &reg<T>(w, i.v[k])[l], sizeof(T));
    }
}

template <bool kLoad, Space kSpace, class Address> Run of_size(u32 size) {
    if (size == 1) return kLoad ? load<kSpace, u8, Address> : store<kSpace, u8, Address>;
    if (size == 2) return kLoad ? load<kSpace, u16, Address> : store<kSpace, u16, Address>;
    if (size == 4) return kLoad ? load<kSpace, u32, Address> : store<kSpace, u32, Address>;
    return kLoad ? load<kSpace, u64, Address> : store<kSpace, u64, Address>;
}
template <bool kLoad> Run of_space(Space space, u32 size, bool wide) {
    switch (space) {
        case Space::kGlobal: return of_size<kLoad, Space::kGlobal, u64>(size);
        case Space::kShared:
            return wide ? of_size<kLoad, Space::kShared, u64>(size) : of_size<kLoad, Space::kShared, u32>(size);
        case Space::kParam: return of_size<kLoad, Space::kParam, u64>(size);
        case Space::kLocal:
            return wide ? of_size<kLoad, Space::kLocal, u64>(size) : of_size<kLoad, Space::kLocal, u32>(size);
        case Space::kGeneric: return of_size<kLoad, Space::kGeneric, u64>(size);
    }
    return nullptr;
}

void complete(Warp& w, AsyncLane& lane, size_t count) {
    for (size_t k = 0; k < count; ++k) {
        const Copy& c = lane.copies[k];
        u8* to = &w.block->shared[c.to];
        memset(to, c.fill, c.bytes);
        if (c.valid > 0) memcpy(to, global_at(w, c.from, c.valid, "cp.async"), c.valid);
        memset(&w.block->shadow[c.to], kWritten, c.bytes);
    }
    lane.copies.erase(lane.copies.begin(), lane.copies.begin() + static_cast<ptrdiff_t>(count));
}

}  // namespace

Run load_run(Space space, u32 size, bool wide) { return of_space<true>(space, size, wide); }
Run store_run(Space space, u32 size, bool wide) { return of_space<false>(space, size, wide); }

// cp.async: what is copied is there only once the thread has waited for it.
void cp_async(Warp& w, const Inst& i) {
    const u32* to = reg<u32>(w, i.a);
    const u64* from = reg<u64>(w, i.b);
    const u32* valid = reg<u32>(w, i.c);
    const u32 bytes = i.count;
    const u8 fill = i.text == options().fill_text && w.kernel->name == options().fill_kernel ? 0xff : 0;
    emu::current.counters.shared_moved += static_cast<u64>(bytes) * static_cast<u64>(__builtin_popcount(w.m));
    ACTIVE {
        const u32 at = to[l] + static_cast<u32>(i.imm);
        const u64 source = from[l] + i.target;
        check_aligned(at, bytes);
        check_aligned(source, bytes);
        shared_bounds(w, at, bytes);
        if (valid[l] > bytes) fault(emu::kLaunchFailed, "cp.async: source size %u above %u", valid[l], bytes);
        if (valid[l] > 0) {
            const u8* p = global_at(w, source, valid[l], "cp.async");
            emu::current.counters.global_read += valid[l];
            if (emu::current.tracking) emu::track(p, valid[l], false);
        }
        u8* s = &w.block->shadow[at];
        for (u32 k = 0; k < bytes; ++k) {
            if (s[k] == kPending) {
                warn(w, i, "copies where an earlier cp.async not waited for is writing");
                break;
            }
        }
        memset(s, kPending, bytes);
        memset(&w.block->shared[at], 0xff, bytes);
        if (valid[l] < bytes) w.kernel->zeros[static_cast<size_t>(&i - w.kernel->code.data())] = 1;
        if (fill) w.kernel->filled += bytes - valid[l];
        w.async[l].copies.push_back(Copy{at, source, bytes, valid[l], fill});
        w.async[l].uncommitted += 1;
    }
}
void cp_async_commit(Warp& w, const Inst&) {
    ACTIVE {
        w.async[l].groups.push_back(w.async[l].uncommitted);
        w.async[l].uncommitted = 0;
    }
}
void cp_async_wait(Warp& w, const Inst& i) {
    ACTIVE {
        AsyncLane& lane = w.async[l];
        size_t count = 0;
        while (lane.groups.size() > (i.flag ? 0 : static_cast<size_t>(i.imm))) {
            count += lane.groups.front();
            lane.groups.pop_front();
        }
        if (i.flag) {
            count += lane.uncommitted;
            lane.uncommitted = 0;
        }
        if (count > 0) complete(w, lane, count);
    }
}

}  // namespace ptx
