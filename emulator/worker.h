// worker.h: an OS thread that runs blocks, one after another. Each CUDA thread of the block is a fiber; fibers give up
// the processor only at collective operations, so everything between two of them is atomic (and a race inside
// such a stretch is seen by the check build only).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device.h"
#include "fiber.h"

namespace emu {

constexpr int kLanes = 32;
constexpr int kMaxWarps = 32;
constexpr uint32_t kFull = 0xffffffffu;

// Shared memory of a block: [dynamic | poison | static arrays, each followed by poison], then a guard page.
constexpr uint32_t kArenaBytes = 256 * 1024;
constexpr uint32_t kPoisonBytes = 16 * 1024;
constexpr uint32_t kRedZone = 1024;
constexpr uint32_t kDynamicAlign = 1024;      // of the dynamic part: DYNAMIC_SHARED's on the device
constexpr uint32_t kSharedLimit = 99 * 1024;  // what every target of ours can give one block

enum class Order : int { kAscending = 0, kDescending = 1, kRandom = 2 };

struct Schedule {
    Order order;
    uint64_t seed;
};

struct Copy {  // one cp.async
    uint32_t smem;
    const unsigned char* global;
    uint16_t bytes, valid;
};

enum class State : uint8_t { kRunning, kBarrier, kCollective, kExited };

struct Warp;

struct Lane {
    FiberState saved;
    Warp* warp;
    FiberStack stack;
    Site site;  // where it waits
    const void* pc;
    uint32_t thread;
    uint8_t lane, position;  // position: rank in the order in which lanes are resumed
    State state;
    std::vector<Copy> copies;      // issued and not yet waited for, oldest first
    std::vector<uint32_t> groups;  // committed groups: end index in `copies`
    uint32_t copies_done, groups_done;
};

using Collective = void (*)(void** args, const void* pc);

struct Warp {
    uint32_t ready;    // positions that can run
    uint32_t arrived;  // lanes waiting in the collective
    uint32_t sync_epoch;
    Collective collective;
    Site site;
    void* args[kLanes];  // by lane
    Lane* lanes;         // by lane
    uint8_t lane_at[kLanes];
    uint8_t position;
};

struct Launch {
    const Kernel* kernel;
    Index grid;
    uint32_t dynamic_bytes;
    const void* params;
};

struct Failure {
    int code;  // CUresult, 0: none
    std::string text;
};

class Worker {
  public:
    Worker();

    // Runs one block to its end. On a failure the fibers are abandoned and the report is left in `failure`.
    bool run_block(const Launch& launch, uint64_t block, const Schedule& schedule);

    // For fibers of this worker.
    void barrier(Site site, const void* pc);
    void collective(Collective run, void* args, Site site, const void* pc);
    [[noreturn]] void fail(int code, const std::string& what, const void* pc = nullptr);
    [[noreturn]] void fail_fault();
    Lane& self() { return *self_; }
    Warp* warps() { return warps_; }
    int warp_count() const { return warp_count_; }
    const Launch& launch() const { return *launch_; }

    unsigned char* static_shared(const void* key, uint32_t bytes, uint32_t align);
    uint32_t static_end() const { return static_end_; }

    Failure failure;
    uint32_t barrier_epoch = 0;  // barriers passed in this block
    bool in_fiber = false;
    const void* fault_address = nullptr;
    const void* fault_pc = nullptr;
    int fault_signal = 0;
    unsigned char* fault_stack_top = nullptr;

  private:
    void prepare(const Launch& launch, uint64_t block, const Schedule& schedule);
    void order_lanes(const Schedule& schedule, uint64_t block);
    void resume_next(Lane& me);
    void release_barrier();
    void on_exit();
    std::string deadlock_text() const;
    static void fiber_main();

    Lane* self_ = nullptr;
    Warp* warp_at_[kMaxWarps];  // by position
    uint32_t ready_warps_ = 0;  // positions of warps with a ready lane
    uint32_t alive_ = 0, waiting_ = 0;
    Warp warps_[kMaxWarps];
    std::vector<Lane> lanes_;
    int warp_count_ = 0;
    const Launch* launch_ = nullptr;
    FiberState scheduler_ = nullptr;
    FiberStack own_stack_{};
    struct StaticArray {
        const void* key;
        uint32_t offset, bytes;
    };
    std::vector<StaticArray> statics_;
    uint32_t static_end_ = 0, static_bytes_ = 0;
};

// The worker of this OS thread, or null.
extern __thread Worker* this_worker __attribute__((tls_model("initial-exec")));

// splitmix64: the schedule's only source of chance.
inline uint64_t mix(uint64_t v) {
    v += 0x9e3779b97f4a7c15ull;
    v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9ull;
    v = (v ^ (v >> 27)) * 0x94d049bb133111ebull;
    return v ^ (v >> 31);
}

// Hooks of the check build (check.cpp); the plain build has empty ones. pc: the place in the kernel.
#ifdef EMU_CHECK
void check_launch_start(uint64_t blocks);
void check_block_start(Worker& worker);
void check_static(uint32_t offset, uint32_t bytes);
void check_shared(const Lane& lane, uint32_t offset, uint32_t bytes, bool write, const void* pc);
void check_async_issue(const Lane& lane, uint32_t offset, uint32_t bytes, const void* pc);
void check_async_done(const Lane& lane, uint32_t offset, uint32_t bytes);
void check_global_read(const Lane& lane, const void* p, uint32_t bytes, const void* pc);
#else
inline void check_launch_start(uint64_t) {}
inline void check_block_start(Worker&) {}
inline void check_static(uint32_t, uint32_t) {}
inline void check_shared(const Lane&, uint32_t, uint32_t, bool, const void*) {}
inline void check_async_issue(const Lane&, uint32_t, uint32_t, const void*) {}
inline void check_async_done(const Lane&, uint32_t, uint32_t) {}
inline void check_global_read(const Lane&, const void*, uint32_t, const void*) {}
#endif

}  // namespace emu
