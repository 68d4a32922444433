// driver.h: state behind the driver API. One lock for everything: work runs inside of it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "launch.h"
#include "queue.h"

namespace emu {

struct CallCounters {
    uint64_t launches = 0, allocations = 0, copies = 0, graph_launches = 0, host_bytes = 0, waits = 0, leaks = 0,
             lookups_failed = 0;
};
CallCounters& counters();

struct Function {
    const Kernel* kernel;
    uint32_t max_dynamic;
};

struct Driver {
    std::mutex lock;
    bool initialised = false;
    int contexts = 0;  // references to the primary context
    int sticky = 0;    // error of a kernel: every later call returns it
    std::string report;
    Queue queue;
    std::set<Event*> events;
    std::map<const Kernel*, std::unique_ptr<Function>> functions;
    std::set<std::shared_ptr<Graph>*> graphs, execs;
    std::set<void*> modules;
};
Driver& driver();

// Null if there is no such stream.
Stream* find_stream(void* handle);

// The check build's reports (check.cpp); the plain build has none.
uint64_t check_report_count();
std::string check_report_text();
void check_reset_reports();
void check_forbid(const void* p, size_t bytes, bool forbidden);

int refuse(int code, const std::string& why);  // keeps the text for emu_last_report
int after_work(int code);                      // makes the error of a kernel sticky

// Head of every call: the lock, and the errors that any call may return.
class Call {
  public:
    explicit Call(bool needs_context = true);
    int status;

  private:
    std::lock_guard<std::mutex> hold_;
};

}  // namespace emu

#define EMU_API extern "C" __attribute__((visibility("default")))

#define ENTER()     \
    emu::Call call; \
    if (call.status != 0) return call.status
// Calls that a capture forbids.
#define ENTER_UNCAPTURED()                    \
    ENTER();                                  \
    if (emu::driver().queue.break_captures()) \
    return emu::refuse(emu::kCaptureUnsupported, std::string(__func__) + " while a stream is being captured")
