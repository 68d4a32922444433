// launch.cpp: see launch.h. Blocks are handed out one by one to the calling thread and to helper threads; a fiber never
// changes its OS thread.
#include "launch.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cache.h"
#include "fault.h"
#include "memory.h"
#include "ptx/ptx.h"
#include "result.h"

namespace emu {

namespace {

std::vector<Kernel>& registry() {
    static std::vector<Kernel> kernels;
    return kernels;
}

struct Job {
    const Launch* launch;
    Schedule schedule;
    std::vector<uint32_t> order;  // empty: ascending or descending
    uint64_t blocks;
    bool tracking;
    std::atomic<uint64_t> next{0};
    std::atomic<uint64_t> limit;  // blocks from here on are not started any more
    std::mutex lock;
    Failure failure{0, {}};
    uint64_t failed_at = UINT64_MAX;
    Counters counters{};
    std::vector<Trace> traces;  // of each block, while a cache is modelled

    uint64_t block(uint64_t i) const {
        if (!order.empty()) return order[i];
        return schedule.order == Order::kDescending ? blocks - 1 - i : i;
    }
};

void add(Counters& sum, const Counters& more) {
    static_assert(sizeof(Counters) % sizeof(uint64_t) == 0, "only counters");
    uint64_t to[sizeof(Counters) / sizeof(uint64_t)], from[sizeof(Counters) / sizeof(uint64_t)];
    memcpy(to, &sum, sizeof(to));
    memcpy(from, &more, sizeof(from));
    for (size_t i = 0; i < sizeof(to) / sizeof(to[0]); ++i) to[i] += from[i];
    memcpy(&sum, to, sizeof(to));
}

void work(Job& job) {
    static thread_local std::unique_ptr<Worker> worker;
    if (!worker) {
        worker = std::make_unique<Worker>();
        prepare_thread_for_faults();
    }
    this_worker = worker.get();
    current.counters = Counters{};
    current.tracking = job.tracking;
    for (;;) {
        const uint64_t i = job.next.fetch_add(1);
        if (i >= job.limit.load()) break;
        current.trace = job.traces.empty() ? nullptr : &job.traces[job.block(i)];
        const uint64_t block = job.block(i);
        if (ptx::active() ? ptx::run_block(*job.launch, block, job.schedule, worker->failure)
                          : worker->run_block(*job.launch, block, job.schedule)) {
            continue;
        }
        std::lock_guard<std::mutex> hold(job.lock);
        if (i < job.failed_at) {
            job.failed_at = i;
            job.failure = worker->failure;
            job.limit.store(std::min(job.limit.load(), i));
        }
    }
    std::lock_guard<std::mutex> hold(job.lock);
    add(job.counters, current.counters);
}

// Helper threads live as long as the process; they sleep between launches.
class Helpers {
  public:
    void run(Job& job, int count) {
        {
            std::lock_guard<std::mutex> hold(lock_);
            while (started_ < count) {
                std::thread([this, index = started_] { serve(index); }).detach();
                ++started_;
            }
            job_ = &job;
            wanted_ = count;
            running_ = count;
            ++generation_;
        }
        wake_.notify_all();
        work(job);
        std::unique_lock<std::mutex> hold(lock_);
        idle_.wait(hold, [this] { return running_ == 0; });
        job_ = nullptr;
    }

  private:
    void serve(int index) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> hold(lock_);
        for (;;) {
            wake_.wait(hold, [&] { return generation_ != seen && job_ != nullptr; });
            seen = generation_;
            if (index >= wanted_) continue;
            Job* job = job_;
            hold.unlock();
            work(*job);
            hold.lock();
            if (--running_ == 0) idle_.notify_all();
        }
    }

    std::mutex lock_;
    std::condition_variable wake_, idle_;
    Job* job_ = nullptr;
    int started_ = 0, wanted_ = 0, running_ = 0;
    uint64_t generation_ = 0;
};

std::map<const Kernel*, KernelStats>& all_stats() {
    static std::map<const Kernel*, KernelStats> stats;
    return stats;
}

void sort_registry() {
    static std::once_flag once;
    std::call_once(once, [] {
        std::sort(registry().begin(), registry().end(),
                  [](const Kernel& a, const Kernel& b) { return strcmp(a.name, b.name) < 0; });
    });
}

}  // namespace

Registration::Registration(const Kernel& kernel) { registry().push_back(kernel); }

const Kernel* find_kernel(const char* name) {
    sort_registry();
    for (const Kernel& kernel : registry()) {
        if (strcmp(kernel.name, name) == 0) return &kernel;
    }
    return nullptr;
}

uint32_t kernel_count() {
    sort_registry();
    return static_cast<uint32_t>(registry().size());
}

const Kernel* kernel_at(uint32_t i) { return i < kernel_count() ? &registry()[i] : nullptr; }

KernelStats& stats_of(const Kernel* kernel) { return all_stats()[kernel]; }

void reset_stats() { all_stats().clear(); }

Settings& settings() {
    static Settings values;
    return values;
}

Schedule& schedule() {
    static thread_local Schedule value{Order::kAscending, 1};
    return value;
}

Failure run_grid(const Launch& launch) {
    static Helpers* const helpers = new Helpers;  // never destroyed: its threads may still sleep in it at exit
    const Settings& set = settings();
    Job job;
    job.launch = &launch;
    job.schedule = schedule();
    job.tracking = set.tracking || cache().on();
    job.blocks = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
    job.limit.store(job.blocks);
    if (job.schedule.order == Order::kRandom) {
        job.order.resize(job.blocks);
        for (uint64_t i = 0; i < job.blocks; ++i) job.order[i] = static_cast<uint32_t>(i);
        for (uint64_t i = job.blocks - 1; i > 0; --i) {
            std::swap(job.order[i], job.order[mix(job.schedule.seed * 31 + i) % (i + 1)]);
        }
    }
    if (job.tracking) tracking_start();
    if (cache().on()) job.traces.resize(job.blocks);
    check_launch_start(job.blocks);
    if (ptx::active()) ptx::begin_launch(launch);
#ifdef EMU_CHECK
    const uint64_t helpers_wanted = 0;  // its shadow memory has no locks, and reports must not depend on chance
#else
    const uint64_t helpers_wanted = std::min<uint64_t>(static_cast<uint64_t>(set.threads), job.blocks) - 1;
#endif
    if (helpers_wanted == 0) {
        work(job);
    } else {
        helpers->run(job, static_cast<int>(helpers_wanted));
    }
    cache().replay(job.traces, job.counters);
    KernelStats& stats = stats_of(launch.kernel);
    stats.calls += 1;
    stats.blocks += job.blocks;
    add(stats.counters, job.counters);
    std::string outside;
    if (job.failure.code == 0 && !device_heap().guards_intact(&outside)) {
        job.failure = Failure{kIllegalAddress, std::string("kernel ") + launch.kernel->name + ": " + outside};
    }
    return job.failure;
}

}  // namespace emu
