// queue.h: streams, events and graphs. Work is only queued; it runs when something waits for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "worker.h"

namespace emu {

struct Completion {
    bool done = false;
    double time_ms = 0.0;
};
using Done = std::shared_ptr<Completion>;

struct Graph;

enum class Work { kLaunch, kToDevice, kToHost, kOnDevice, kMemset, kMarker, kGraph };

// One piece of work; in a graph also its predecessors.
struct Node {
    Work work = Work::kMarker;
    const Kernel* kernel = nullptr;
    Index grid{};
    uint32_t shared = 0;
    std::vector<unsigned char> params;  // frozen when enqueued
    unsigned char* to = nullptr;
    const unsigned char* from = nullptr;
    size_t bytes = 0;
    uint32_t value = 0;                 // memset
    uint32_t width = 1;                 // bytes of value
    std::vector<unsigned char> staged;  // source of a copy from pageable memory, taken when the call was made
    std::shared_ptr<const Graph> graph;
    std::vector<uint32_t> after;
};

struct Graph {
    std::vector<Node> nodes;
};

struct Capture {
    std::shared_ptr<Graph> graph = std::make_shared<Graph>();
    int mode = 0;  // CU_STREAM_CAPTURE_MODE_GLOBAL, _THREAD_LOCAL, _RELAXED
    std::thread::id thread;
    bool invalid = false;
};

struct Item {
    Node node;
    std::vector<Done> after;
    Done done;
};

struct Stream {
    bool blocking = true;  // ordered with the null stream
    bool destroyed = false;
    std::deque<Item> queue;
    Done last;
    std::shared_ptr<Capture> capture;
    bool capture_origin = false;
    std::vector<uint32_t> frontier;  // last captured nodes
};

struct Event {
    Done last;
    bool timing = true;
    std::shared_ptr<Capture> capture;
    std::vector<uint32_t> frontier;
};

class Queue {
  public:
    Stream* null_stream() { return &null_; }
    std::vector<std::unique_ptr<Stream>> streams;  // includes destroyed ones that still have work

    // Appends to the stream, or to the graph being captured. Returns a Result.
    int enqueue(Stream& stream, Node node);

    int record(Event& event, Stream& stream);
    int wait(Stream& stream, const Event& event);

    // Runs work until `target` is done (null: all of it). Returns the error of a failed kernel.
    int run_until(const Done& target);
    // Runs one piece of work that `target` needs, if there is any.
    int run_one(const Done& target);
    void discard_all();

    // Ends captures that a forbidden call breaks; true if there were any.
    bool break_captures();
    bool capturing() const;

    std::string report;  // of the last failed work

  private:
    int run(const Node& node);
    int run_graph(const Graph& graph);
    Stream* choose(const Done& target);
    void finish_front(Stream& stream);
    std::vector<Stream*> all();
    void needed_by(const Done& target, std::set<const Stream*>* out);

    Stream null_;
    uint64_t turn_ = 0;
};

}  // namespace emu
