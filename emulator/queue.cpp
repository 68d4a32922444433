// queue.cpp: see queue.h.
#include "queue.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "driver.h"
#include "launch.h"
#include "memory.h"
#include "result.h"

namespace emu {

namespace {

double now_ms() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void add_unique(std::vector<uint32_t>* to, const std::vector<uint32_t>& more) {
    for (uint32_t v : more) {
        if (std::find(to->begin(), to->end(), v) == to->end()) to->push_back(v);
    }
}

bool runnable(const Item& item) {
    return std::all_of(item.after.begin(), item.after.end(), [](const Done& done) { return done->done; });
}

}  // namespace

int Queue::enqueue(Stream& stream, Node node) {
    if (stream.capture) {
        Capture& capture = *stream.capture;
        if (capture.invalid) return kCaptureInvalidated;
        if (node.work == Work::kGraph) return kCaptureUnsupported;  // child graphs: we have no use for them
        node.after = stream.frontier;
        stream.frontier = {static_cast<uint32_t>(capture.graph->nodes.size())};
        capture.graph->nodes.push_back(std::move(node));
        return kSuccess;
    }
    Item item;
    item.done = std::make_shared<Completion>();
    item.node = std::move(node);
    // The null stream waits for all blocking streams, and they for it.
    if (&stream == &null_) {
        for (const auto& other : streams) {
            if (!other->blocking) continue;
            if (other->capture) {
                other->capture->invalid = true;
                return kCaptureImplicit;
            }
            if (other->last && !other->last->done) item.after.push_back(other->last);
        }
    } else if (stream.blocking && null_.last && !null_.last->done) {
        item.after.push_back(null_.last);
    }
    stream.last = item.done;
    stream.queue.push_back(std::move(item));
    return kSuccess;
}

int Queue::record(Event& event, Stream& stream) {
    if (stream.capture) {
        if (stream.capture->invalid) return kCaptureInvalidated;
        event.capture = stream.capture;
        event.frontier = stream.frontier;
        return kSuccess;
    }
    event.capture.reset();
    const int code = enqueue(stream, Node{});
    if (code == kSuccess) event.last = stream.last;
    return code;
}

int Queue::wait(Stream& stream, const Event& event) {
    if (event.capture && event.capture->graph) {
        // Work after this belongs to the same capture.
        if (event.capture->invalid) return kCaptureInvalidated;
        if (stream.capture && stream.capture != event.capture) {
            stream.capture->invalid = event.capture->invalid = true;
            return kCaptureMerge;
        }
        if (&stream == &null_) return kCaptureImplicit;
        if (!stream.capture) {
            stream.capture = event.capture;
            stream.capture_origin = false;
            stream.frontier.clear();
        }
        add_unique(&stream.frontier, event.frontier);
        return kSuccess;
    }
    if (stream.capture) {
        // An event from outside has no place in the graph.
        stream.capture->invalid = true;
        return kCaptureIsolation;
    }
    if (!event.last || event.last->done) return kSuccess;
    const int code = enqueue(stream, Node{});
    if (code == kSuccess) stream.queue.back().after.push_back(event.last);
    return code;
}

std::vector<Stream*> Queue::all() {
    std::vector<Stream*> list{&null_};
    for (const auto& stream : streams) list.push_back(stream.get());
    return list;
}

// Streams whose front must run before `target` can be done.
void Queue::needed_by(const Done& target, std::set<const Stream*>* out) {
    for (Stream* stream : all()) {
        const auto at = std::find_if(stream->queue.begin(), stream->queue.end(),
                                     [&](const Item& item) { return item.done == target; });
        if (at == stream->queue.end()) continue;
        out->insert(stream);
        std::vector<Done> deeper;
        for (auto item = stream->queue.begin(); item != at + 1; ++item) {
            for (const Done& done : item->after) {
                if (!done->done) deeper.push_back(done);
            }
        }
        for (const Done& done : deeper) needed_by(done, out);
    }
}

// The stream to run next, or null. Only event waits order streams; everything else is the schedule's choice.
Stream* Queue::choose(const Done& target) {
    std::set<const Stream*> needed;
    if (target) needed_by(target, &needed);
    std::vector<Stream*> wanted, others;
    for (Stream* stream : all()) {
        if (stream->queue.empty() || !runnable(stream->queue.front())) continue;
        (!target || needed.count(stream) != 0 ? wanted : others).push_back(stream);
    }
    const Schedule chosen = schedule();
    ++turn_;
    if (chosen.order == Order::kDescending) {
        if (!others.empty()) return others.back();
        return wanted.empty() ? nullptr : wanted.back();
    }
    if (chosen.order == Order::kRandom) {
        if (wanted.empty()) return nullptr;
        wanted.insert(wanted.end(), others.begin(), others.end());
        return wanted[mix(chosen.seed ^ mix(turn_)) % wanted.size()];
    }
    return wanted.empty() ? nullptr : wanted.front();
}

void Queue::finish_front(Stream& stream) {
    stream.queue.front().done->done = true;
    stream.queue.front().done->time_ms = now_ms();
    stream.queue.pop_front();
    if (stream.destroyed && stream.queue.empty()) {
        const auto gone =
            std::find_if(streams.begin(), streams.end(), [&](const auto& one) { return one.get() == &stream; });
        if (gone != streams.end()) streams.erase(gone);
    }
}

int Queue::run_one(const Done& target) {
    Stream* stream = choose(target);
    if (stream == nullptr) return kSuccess;
    const int code = run(stream->queue.front().node);
    finish_front(*stream);
    if (code != kSuccess) discard_all();
    return code;
}

int Queue::run_until(const Done& target) {
    for (bool waits = false;; waits = true) {
        if (target && target->done) return kSuccess;
        if (!target) {
            const std::vector<Stream*> list = all();
            if (std::all_of(list.begin(), list.end(), [](const Stream* one) { return one->queue.empty(); }))
                return kSuccess;
        }
        if (!waits) ++counters().waits;
        const int code = run_one(target);
        if (code != kSuccess) return code;
    }
}

void Queue::discard_all() {
    for (Stream* stream : all()) {
        while (!stream->queue.empty()) {
            const bool last = stream->destroyed && stream->queue.size() == 1;
            finish_front(*stream);
            if (last) break;
        }
    }
}

int Queue::run_graph(const Graph& graph) {
    const size_t count = graph.nodes.size();
    std::vector<bool> done(count, false);
    const Schedule chosen = schedule();
    for (size_t left = count; left > 0; --left) {
        std::vector<size_t> ready;
        for (size_t i = 0; i < count; ++i) {
            const auto& after = graph.nodes[i].after;
            if (!done[i] && std::all_of(after.begin(), after.end(), [&](uint32_t one) { return done[one]; }))
                ready.push_back(i);
        }
        size_t pick = 0;
        if (chosen.order == Order::kDescending) pick = ready.size() - 1;
        if (chosen.order == Order::kRandom) pick = mix(chosen.seed ^ mix(++turn_)) % ready.size();
        const int code = run(graph.nodes[ready[pick]]);
        if (code != kSuccess) return code;
        done[ready[pick]] = true;
    }
    return kSuccess;
}

int Queue::run(const Node& node) {
    const auto on_device = [&](const void* p) {
        if (device_heap().find(p, node.bytes) != nullptr) return true;
        report = "copy or memset of " + std::to_string(node.bytes) + " bytes: " + describe_address(p);
        return false;
    };
    if (node.work == Work::kToDevice || node.work == Work::kToHost) counters().host_bytes += node.bytes;
    switch (node.work) {
        case Work::kMarker: return kSuccess;
        case Work::kLaunch: {
            ++counters().launches;
            const Launch launch{node.kernel, node.grid, node.shared, node.params.data()};
            const Failure failure = run_grid(launch);
            if (failure.code != kSuccess) report = failure.text;
            return failure.code;
        }
        case Work::kToDevice:
            ++counters().copies;
            if (!on_device(node.to)) return kIllegalAddress;
            memcpy(node.to, node.staged.empty() ? node.from : node.staged.data(), node.bytes);
            check_memory_written(node.to, node.bytes);
            return kSuccess;
        case Work::kToHost:
            ++counters().copies;
            if (!on_device(node.from)) return kIllegalAddress;
            memcpy(node.to, node.from, node.bytes);
            return kSuccess;
        case Work::kOnDevice:
            ++counters().copies;
            if (!on_device(node.from) || !on_device(node.to)) return kIllegalAddress;
            memmove(node.to, node.from, node.bytes);
            check_memory_copied(node.to, node.from, node.bytes);
            return kSuccess;
        case Work::kMemset:
            if (!on_device(node.to)) return kIllegalAddress;
            for (size_t i = 0; i < node.bytes; i += node.width) memcpy(node.to + i, &node.value, node.width);
            check_memory_written(node.to, node.bytes);
            return kSuccess;
        case Work::kGraph: ++counters().graph_launches; return run_graph(*node.graph);
    }
    return kUnknown;
}

bool Queue::capturing() const {
    return std::any_of(streams.begin(), streams.end(), [](const auto& stream) { return stream->capture != nullptr; });
}

bool Queue::break_captures() {
    bool any = false;
    for (const auto& stream : streams) {
        if (!stream->capture) continue;
        Capture& capture = *stream->capture;
        constexpr int kGlobal = 0, kThreadLocal = 1;
        if (capture.mode == kGlobal || (capture.mode == kThreadLocal && capture.thread == std::this_thread::get_id())) {
            capture.invalid = true;
            any = true;
        }
    }
    return any;
}

}  // namespace emu
