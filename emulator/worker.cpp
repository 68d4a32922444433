// worker.cpp: fibers of a block, barrier and rendezvous. See worker.h.
#include "worker.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

#include "locate.h"
#include "memory.h"
#include "result.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#endif

namespace emu {

__thread Current current;
__thread Worker* this_worker;

Worker::Worker() {
    void* base = mmap(nullptr, kArenaBytes + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base, kArenaBytes, PROT_READ | PROT_WRITE) != 0) {
        perror("emulated device: no memory for a block");
        abort();
    }
    // mmap aligns to a page, more than the 1024 bytes that swizzles on absolute addresses rely on
    current.arena = static_cast<unsigned char*>(base);
    const FiberStack fault_stack = make_stack(kStackBytes);
    fault_stack_top = fault_stack.low + fault_stack.bytes;
}

// Which lane, and which warp, is resumed first.
void Worker::order_lanes(const Schedule& schedule, uint64_t block) {
    const uint64_t seed = mix(schedule.seed ^ mix(block + 1));
    uint8_t warp_order[kMaxWarps];
    for (int i = 0; i < warp_count_; ++i) warp_order[i] = static_cast<uint8_t>(i);
    if (schedule.order == Order::kDescending) {
        for (int i = 0; i < warp_count_; ++i) warp_order[i] = static_cast<uint8_t>(warp_count_ - 1 - i);
    } else if (schedule.order == Order::kRandom) {
        for (int i = warp_count_ - 1; i > 0; --i) {
            std::swap(warp_order[i], warp_order[mix(seed + static_cast<uint64_t>(i)) % static_cast<uint64_t>(i + 1)]);
        }
    }
    for (int w = 0; w < warp_count_; ++w) {
        Warp& warp = warps_[warp_order[w]];
        warp.position = static_cast<uint8_t>(w);
        warp_at_[w] = &warp;
        for (int i = 0; i < kLanes; ++i) {
            const int lane = schedule.order == Order::kDescending ? kLanes - 1 - i : i;
            warp.lane_at[i] = static_cast<uint8_t>(lane);
        }
        if (schedule.order == Order::kRandom) {
            for (int i = kLanes - 1; i > 0; --i) {
                const uint64_t chance = mix(seed ^ static_cast<uint64_t>(warp_order[w] * 64 + i + 1) << 20);
                std::swap(warp.lane_at[i], warp.lane_at[chance % static_cast<uint64_t>(i + 1)]);
            }
        }
        for (int i = 0; i < kLanes; ++i) warp.lanes[warp.lane_at[i]].position = static_cast<uint8_t>(i);
    }
}

void Worker::prepare(const Launch& launch, uint64_t block, const Schedule& schedule) {
    launch_ = &launch;
    const uint32_t threads = launch.kernel->threads;
    warp_count_ = static_cast<int>(threads / kLanes);
    const size_t have = lanes_.size();
    if (threads > have) {
        lanes_.resize(threads);  // no fiber is alive between blocks, so lanes may move
        for (size_t i = have; i < threads; ++i) {
            lanes_[i].stack = make_stack(kStackBytes);
            lanes_[i].saved = nullptr;
        }
    }
    for (uint32_t i = 0; i < threads; ++i) {
        Lane& lane = lanes_[i];
        lane.thread = i;
        lane.lane = static_cast<uint8_t>(i % kLanes);
        lane.warp = &warps_[i / kLanes];
        lane.state = State::kRunning;
        lane.copies.clear();
        lane.groups.clear();
        lane.copies_done = lane.groups_done = 0;
        if (lane.saved == nullptr) lane.saved = make_fiber(lane.stack, lane.lane * 128u, fiber_main);
    }
    for (int w = 0; w < warp_count_; ++w) {
        warps_[w].lanes = &lanes_[static_cast<size_t>(w) * kLanes];
        warps_[w].ready = kFull;
        warps_[w].arrived = 0;
        warps_[w].sync_epoch = 0;
    }
    order_lanes(schedule, block);
    ready_warps_ = warp_count_ == kMaxWarps ? kFull : (1u << warp_count_) - 1;
    alive_ = threads;
    waiting_ = 0;
    barrier_epoch = 0;

    const Index& grid = launch.grid;
    current.block = Index{static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                          static_cast<unsigned>(block / grid.x / grid.y)};
    current.block_dim = Index{threads, 1, 1};
    current.grid_dim = grid;
    current.thread = Index{0, 0, 0};
    current.dynamic_bytes = launch.dynamic_bytes;
    // Not-a-number in bf16 and f32: what is read before it is written, or beyond the end, shows in the result.
    ASAN_UNPOISON_MEMORY_REGION(current.arena, kArenaBytes);
    memset(current.arena, 0xff, launch.dynamic_bytes + kPoisonBytes);
    ASAN_POISON_MEMORY_REGION(current.arena + launch.dynamic_bytes, kArenaBytes - launch.dynamic_bytes);
    statics_.clear();
    static_bytes_ = 0;
    static_end_ = (launch.dynamic_bytes + kPoisonBytes + 1023) / 1024 * 1024;
    check_block_start(*this);
}

bool Worker::run_block(const Launch& launch, uint64_t block, const Schedule& schedule) {
    prepare(launch, block, schedule);
    failure = Failure{0, {}};
    Warp* first = warp_at_[0];
    self_ = &first->lanes[first->lane_at[0]];
    current.thread.x = self_->thread;
    in_fiber = true;
    switch_fiber(&scheduler_, self_->saved, self_->stack);
    in_fiber = false;
    if (failure.code == 0) return true;
    for (Lane& lane : lanes_) lane.saved = nullptr;  // abandoned in the middle: start afresh
    return false;
}

// A fiber is used for block after block: it returns here when its kernel has ended.
void Worker::fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    for (;;) {
        Worker& worker = *this_worker;
        worker.launch_->kernel->invoke(worker.launch_->params);
        worker.on_exit();
    }
}

void Worker::on_exit() {
    Lane& me = *self_;
    me.state = State::kExited;
    --alive_;
    Warp& warp = *me.warp;
    warp.ready &= ~(1u << me.position);
    if (warp.ready == 0) ready_warps_ &= ~(1u << warp.position);
    // Threads that have returned are not waited for, as on the device.
    if (alive_ > 0 && waiting_ == alive_) release_barrier();
    resume_next(me);
}

// Continues the next fiber; returns when `me` is resumed. Lanes of the same warp first: their frames are in the cache.
void Worker::resume_next(Lane& me) {
    Warp* warp = me.warp;
    if (warp->ready == 0) {
        if (ready_warps_ == 0) {
            if (alive_ > 0) fail(kLaunchTimeout, deadlock_text());
            switch_fiber(&me.saved, scheduler_, own_stack_);
            return;
        }
        warp = warp_at_[__builtin_ctz(ready_warps_)];
    }
    Lane& next = warp->lanes[warp->lane_at[__builtin_ctz(warp->ready)]];
    if (&next == &me) return;
    self_ = &next;
    current.thread.x = next.thread;
    switch_fiber(&me.saved, next.saved, next.stack);
}

void Worker::release_barrier() {
    for (int w = 0; w < warp_count_; ++w) {
        Warp& warp = warps_[w];
        uint32_t ready = 0;
        for (int i = 0; i < kLanes; ++i) {
            Lane& lane = warp.lanes[i];
            if (lane.state == State::kExited) continue;
            lane.state = State::kRunning;
            ready |= 1u << lane.position;
        }
        warp.ready = ready;
        if (ready != 0) ready_warps_ |= 1u << warp.position;
    }
    waiting_ = 0;
    ++barrier_epoch;
}

void Worker::barrier(Site site, const void* pc) {
    Lane& me = *self_;
    me.site = site;
    me.pc = pc;
    me.state = State::kBarrier;
    Warp& warp = *me.warp;
    warp.ready &= ~(1u << me.position);
    if (warp.ready == 0) ready_warps_ &= ~(1u << warp.position);
    if (++waiting_ == alive_) {
        for (int w = 0; w < warp_count_; ++w) {
            for (int i = 0; i < kLanes; ++i) {
                const Lane& other = warps_[w].lanes[i];
                if (other.state != State::kBarrier || other.site.line == site.line) continue;
                fail(kLaunchFailed, "divergent barrier: this thread is" + locate(pc) + ", thread " +
                                        std::to_string(other.thread) + locate(other.pc));
            }
        }
        release_barrier();
        // restart with the first fiber in the schedule's order, whichever came last
        Warp* first = warp_at_[__builtin_ctz(ready_warps_)];
        Lane& next = first->lanes[first->lane_at[__builtin_ctz(first->ready)]];
        if (&next == &me) return;
        self_ = &next;
        current.thread.x = next.thread;
        switch_fiber(&me.saved, next.saved, next.stack);
        return;
    }
    resume_next(me);
}

// Every lane of the warp publishes its arguments; the last one to arrive performs the operation for all and runs on.
void Worker::collective(Collective run, void* args, Site site, const void* pc) {
    Lane& me = *self_;
    me.pc = pc;
    Warp& warp = *me.warp;
    if (warp.arrived == 0) {
        warp.collective = run;
        warp.site = site;
    } else if (warp.collective != run || warp.site.line != site.line) {
        const Lane& other = warp.lanes[__builtin_ctz(warp.arrived)];
        fail(kLaunchFailed, "divergent warp operation: this lane is" + locate(pc) + ", lane " +
                                std::to_string(other.lane) + " of the warp" + locate(other.pc));
    }
    warp.args[me.lane] = args;
    warp.arrived |= 1u << me.lane;
    if (warp.arrived == kFull) {
        run(warp.args, pc);
        warp.arrived = 0;
        warp.ready = kFull;
        return;
    }
    me.site = site;
    me.state = State::kCollective;
    warp.ready &= ~(1u << me.position);
    if (warp.ready == 0) ready_warps_ &= ~(1u << warp.position);
    resume_next(me);
    me.state = State::kRunning;
}

std::string Worker::deadlock_text() const {
    std::string text = "deadlock: no thread can go on";
    int lines = 0;
    for (int w = 0; w < warp_count_; ++w) {
        const Warp& warp = warps_[w];
        for (int i = 0; i < kLanes;) {
            const Lane& lane = warp.lanes[i];
            int end = i + 1;
            while (end < kLanes && warp.lanes[end].state == lane.state &&
                   (lane.state == State::kExited || warp.lanes[end].site.line == lane.site.line)) {
                ++end;
            }
            if (++lines <= 24) {
                text += "\n  threads " + std::to_string(lane.thread) + "-" +
                        std::to_string(lane.thread + static_cast<uint32_t>(end - i) - 1);
                if (lane.state == State::kExited) {
                    text += " have returned";
                } else {
                    text += lane.state == State::kBarrier ? " wait in __syncthreads" : " wait in a warp operation";
                    text += locate(lane.pc);
                }
            }
            i = end;
        }
    }
    return text;
}

void Worker::fail(int code, const std::string& what, const void* pc) {
    char where[160];
    snprintf(where, sizeof(where), "kernel %s, block (%u, %u, %u), thread %u: ", launch_->kernel->name, current.block.x,
             current.block.y, current.block.z, self_->thread);
    failure = Failure{code, where + what + locate(pc)};
    FiberState nowhere;
    switch_fiber(&nowhere, scheduler_, own_stack_);
    __builtin_unreachable();
}

void Worker::fail_fault() {
    // locate() takes an address of return, this is the instruction itself
    const void* pc = static_cast<const char*>(fault_pc) + 1;
    if (fault_signal != 0) {
        fail(kLaunchFailed, "signal " + std::to_string(fault_signal) + " (" + strsignal(fault_signal) + ")", pc);
    }
    const unsigned char* at = static_cast<const unsigned char*>(fault_address);
    const FiberStack& stack = self_->stack;
    if (at < stack.low && at + kPage >= stack.low) fail(kLaunchFailed, "stack overflow of the emulated thread", pc);
    if (at >= current.arena && at < current.arena + kArenaBytes + kPage) {
        fail(kIllegalAddress, "illegal address, behind the block's shared memory", pc);
    }
    fail(kIllegalAddress, "illegal address " + describe_address(fault_address), pc);
}

unsigned char* Worker::static_shared(const void* key, uint32_t bytes, uint32_t align) {
    for (const StaticArray& array : statics_) {
        if (array.key == key) return current.arena + array.offset;
    }
    const uint32_t unit = align < 16 ? 16 : align;
    const uint32_t offset = (static_end_ + unit - 1) / unit * unit;
    static_bytes_ = (static_bytes_ + align - 1) / align * align + bytes;
    // As ptxas lays it out: the dynamic part begins behind the static arrays, at a multiple of its own alignment.
    const uint32_t before =
        current.dynamic_bytes > 0 ? (static_bytes_ + kDynamicAlign - 1) / kDynamicAlign * kDynamicAlign : static_bytes_;
    if (before + current.dynamic_bytes > kSharedLimit || static_bytes_ > 48 * 1024 ||
        offset + bytes + kRedZone > kArenaBytes) {
        fail(kInvalidValue, "shared memory: " + std::to_string(static_bytes_) + " static bytes, " +
                                std::to_string(before) + " with the alignment of the dynamic part, + " +
                                std::to_string(current.dynamic_bytes) +
                                " dynamic; limits are 48 KiB static, 99 KiB in all");
    }
    ASAN_UNPOISON_MEMORY_REGION(current.arena + static_end_, offset + bytes + kRedZone - static_end_);
    memset(current.arena + static_end_, 0xff, offset + bytes + kRedZone - static_end_);
    ASAN_POISON_MEMORY_REGION(current.arena + static_end_, offset - static_end_);
    ASAN_POISON_MEMORY_REGION(current.arena + offset + bytes, kRedZone);
    static_end_ = offset + bytes + kRedZone;
    statics_.push_back(StaticArray{key, offset, bytes});
    check_static(offset, bytes);
    return current.arena + offset;
}

// What device code calls.

void fail(const char* format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    this_worker->fail(kLaunchFailed, text, __builtin_return_address(0));
}

unsigned char* dynamic_shared(uint32_t bytes) {
    if (current.dynamic_bytes != bytes) {
        fail("the launch gives %u bytes of dynamic shared memory, the kernel is written for %u", current.dynamic_bytes,
             bytes);
    }
    return current.arena;
}

void fail_misaligned(const void* p, unsigned bytes) {
    char text[96];
    snprintf(text, sizeof(text), "misaligned access: %u bytes at %p", bytes, p);
    this_worker->fail(kMisalignedAddress, text, __builtin_return_address(0));
}

void sync_threads(Site site) { this_worker->barrier(site, __builtin_return_address(0)); }

unsigned char* static_shared(const void* key, uint32_t bytes, uint32_t align) {
    return this_worker->static_shared(key, bytes, align);
}

uint32_t shared_offset(const void* p) {
    const unsigned char* at = static_cast<const unsigned char*>(p);
    if (at < current.arena || at >= current.arena + kArenaBytes) fail("%p is not an address in shared memory", p);
    return static_cast<uint32_t>(at - current.arena);
}

}  // namespace emu
