// driver_stream.cpp: streams, events, capture, graphs.
#include <algorithm>

#include "driver.h"
#include "result.h"

namespace emu {

Stream* find_stream(void* handle) {
    Queue& queue = driver().queue;
    if (handle == nullptr) return queue.null_stream();
    for (const auto& stream : queue.streams) {
        if (stream.get() == handle && !stream->destroyed) return stream.get();
    }
    return nullptr;
}

}  // namespace emu

using namespace emu;

namespace {

using GraphHandle = std::shared_ptr<Graph>*;

// Waiting for a stream that is being captured makes no sense: nothing in it will ever run.
int break_capture(Stream& stream, const char* what) {
    stream.capture->invalid = true;
    return refuse(kCaptureUnsupported, std::string(what) + " on a stream that is being captured");
}

void leave_capture(const std::shared_ptr<Capture>& capture) {
    for (const auto& stream : driver().queue.streams) {
        if (stream->capture != capture) continue;
        stream->capture.reset();
        stream->capture_origin = false;
        stream->frontier.clear();
    }
    for (Event* event : driver().events) {
        if (event->capture == capture) event->capture.reset();
    }
}

// Whether every node leads to one of the origin's last nodes.
bool joined(const Graph& graph, const std::vector<uint32_t>& frontier) {
    std::vector<bool> reached(graph.nodes.size(), false);
    for (uint32_t node : frontier) reached[node] = true;
    for (size_t i = graph.nodes.size(); i-- > 0;) {
        if (!reached[i]) continue;
        for (uint32_t before : graph.nodes[i].after) reached[before] = true;
    }
    return std::all_of(reached.begin(), reached.end(), [](bool one) { return one; });
}

}  // namespace

#define STREAM(handle)                    \
    Stream* stream = find_stream(handle); \
    if (stream == nullptr) return kInvalidHandle
#define EVENT(handle)                           \
    Event* event = static_cast<Event*>(handle); \
    if (driver().events.count(event) == 0) return kInvalidHandle

EMU_API int cuStreamCreate(void** out, unsigned flags) {
    ENTER();
    if (flags > 1) return kInvalidValue;
    auto stream = std::make_unique<Stream>();
    stream->blocking = flags == 0;  // CU_STREAM_NON_BLOCKING = 1
    *out = stream.get();
    driver().queue.streams.push_back(std::move(stream));
    return kSuccess;
}

EMU_API int cuStreamCreateWithPriority(void** out, unsigned flags, int) { return cuStreamCreate(out, flags); }

// Queued work still runs, as the manual promises.
EMU_API int cuStreamDestroy_v2(void* handle) {
    ENTER();
    STREAM(handle);
    if (handle == nullptr) return kInvalidHandle;
    if (stream->capture) leave_capture(stream->capture);
    stream->destroyed = true;
    auto& streams = driver().queue.streams;
    if (stream->queue.empty()) {
        streams.erase(
            std::find_if(streams.begin(), streams.end(), [&](const auto& one) { return one.get() == stream; }));
    }
    return kSuccess;
}
EMU_API int cuStreamDestroy(void* handle) { return cuStreamDestroy_v2(handle); }

EMU_API int cuStreamSynchronize(void* handle) {
    ENTER();
    STREAM(handle);
    if (stream->capture) return break_capture(*stream, __func__);
    if (!stream->last) return kSuccess;
    return after_work(driver().queue.run_until(stream->last));
}

// Each query lets one piece of work run, so that polling ends.
EMU_API int cuStreamQuery(void* handle) {
    ENTER();
    STREAM(handle);
    if (stream->capture) return break_capture(*stream, __func__);
    if (!stream->last || stream->last->done) return kSuccess;
    const Done last = stream->last;
    if (int code = after_work(driver().queue.run_one(last))) return code;
    return last->done ? kSuccess : kNotReady;
}

EMU_API int cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    ENTER();
    STREAM(handle);
    EVENT(event_handle);
    return driver().queue.wait(*stream, *event);
}

EMU_API int cuStreamBeginCapture_v2(void* handle, int mode) {
    ENTER();
    STREAM(handle);
    if (mode < 0 || mode > 2) return kInvalidValue;
    if (handle == nullptr) return refuse(kCaptureUnsupported, "the null stream cannot be captured");
    if (stream->capture) return refuse(kCaptureUnsupported, "the stream is being captured already");
    stream->capture = std::make_shared<Capture>();
    stream->capture->mode = mode;
    stream->capture->thread = std::this_thread::get_id();
    stream->capture_origin = true;
    stream->frontier.clear();
    return kSuccess;
}
EMU_API int cuStreamBeginCapture(void* handle, int mode) { return cuStreamBeginCapture_v2(handle, mode); }

EMU_API int cuStreamEndCapture(void* handle, void** out) {
    ENTER();
    STREAM(handle);
    *out = nullptr;
    if (!stream->capture) return refuse(kInvalidValue, "cuStreamEndCapture: the stream is not being captured");
    const std::shared_ptr<Capture> capture = stream->capture;
    if (!stream->capture_origin) {
        capture->invalid = true;
        return kCaptureUnmatched;
    }
    constexpr int kRelaxed = 2;
    if (capture->mode != kRelaxed && capture->thread != std::this_thread::get_id()) return kCaptureWrongThread;
    const bool complete = joined(*capture->graph, stream->frontier);
    leave_capture(capture);
    if (capture->invalid) return kCaptureInvalidated;
    if (!complete) return kCaptureUnjoined;
    GraphHandle graph = new std::shared_ptr<Graph>(capture->graph);
    driver().graphs.insert(graph);
    *out = graph;
    return kSuccess;
}

EMU_API int cuStreamIsCapturing(void* handle, int* status) {
    ENTER();
    STREAM(handle);
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return kSuccess;
}

EMU_API int cuGraphInstantiateWithFlags(void** exec, void* handle, unsigned long long) {
    ENTER();
    GraphHandle graph = static_cast<GraphHandle>(handle);
    if (driver().graphs.count(graph) == 0) return kInvalidHandle;
    GraphHandle made = new std::shared_ptr<Graph>(std::make_shared<Graph>(**graph));
    driver().execs.insert(made);
    *exec = made;
    return kSuccess;
}
EMU_API int cuGraphInstantiate(void** exec, void* graph, unsigned long long flags) {
    return cuGraphInstantiateWithFlags(exec, graph, flags);
}

EMU_API int cuGraphLaunch(void* handle, void* stream_handle) {
    ENTER();
    STREAM(stream_handle);
    GraphHandle exec = static_cast<GraphHandle>(handle);
    if (driver().execs.count(exec) == 0) return kInvalidHandle;
    Node node;
    node.work = Work::kGraph;
    node.graph = *exec;
    return driver().queue.enqueue(*stream, std::move(node));
}

EMU_API int cuGraphUpload(void* handle, void* stream_handle) {
    ENTER();
    STREAM(stream_handle);
    return driver().execs.count(static_cast<GraphHandle>(handle)) != 0 ? kSuccess : kInvalidHandle;
}

EMU_API int cuGraphGetNodes(void* handle, void** nodes, size_t* count) {
    ENTER();
    GraphHandle graph = static_cast<GraphHandle>(handle);
    if (driver().graphs.count(graph) == 0) return kInvalidHandle;
    auto& all = (*graph)->nodes;
    if (nodes != nullptr) {
        for (size_t i = 0; i < *count; ++i) nodes[i] = i < all.size() ? &all[i] : nullptr;
    }
    *count = nodes == nullptr ? all.size() : std::min(*count, all.size());
    return kSuccess;
}

EMU_API int cuGraphExecDestroy(void* handle) {
    ENTER();
    GraphHandle exec = static_cast<GraphHandle>(handle);
    if (driver().execs.erase(exec) == 0) return kInvalidHandle;
    delete exec;
    return kSuccess;
}

EMU_API int cuGraphDestroy(void* handle) {
    ENTER();
    GraphHandle graph = static_cast<GraphHandle>(handle);
    if (driver().graphs.erase(graph) == 0) return kInvalidHandle;
    delete graph;
    return kSuccess;
}

EMU_API int cuEventCreate(void** out, unsigned flags) {
    ENTER();
    Event* event = new Event;
    event->timing = (flags & 2) == 0;  // CU_EVENT_DISABLE_TIMING
    driver().events.insert(event);
    *out = event;
    return kSuccess;
}

EMU_API int cuEventRecord(void* event_handle, void* handle) {
    ENTER();
    STREAM(handle);
    EVENT(event_handle);
    return driver().queue.record(*event, *stream);
}

EMU_API int cuEventQuery(void* event_handle) {
    ENTER();
    EVENT(event_handle);
    if (event->capture) {
        event->capture->invalid = true;
        return kCapturedEvent;
    }
    if (!event->last || event->last->done) return kSuccess;
    const Done last = event->last;
    if (int code = after_work(driver().queue.run_one(last))) return code;
    return last->done ? kSuccess : kNotReady;
}

EMU_API int cuEventSynchronize(void* event_handle) {
    ENTER();
    EVENT(event_handle);
    if (event->capture) {
        event->capture->invalid = true;
        return kCapturedEvent;
    }
    if (driver().queue.break_captures())
        return refuse(kCaptureUnsupported, "cuEventSynchronize while a stream is being captured");
    if (!event->last) return kSuccess;
    return after_work(driver().queue.run_until(event->last));
}

EMU_API int cuEventElapsedTime_v2(float* ms, void* start_handle, void* end_handle) {
    ENTER();
    Event* start = static_cast<Event*>(start_handle);
    Event* end = static_cast<Event*>(end_handle);
    if (driver().events.count(start) == 0 || driver().events.count(end) == 0) return kInvalidHandle;
    if (!start->timing || !end->timing || !start->last || !end->last) return kInvalidHandle;
    if (!start->last->done || !end->last->done) return kNotReady;
    *ms = static_cast<float>(end->last->time_ms - start->last->time_ms);
    return kSuccess;
}
EMU_API int cuEventElapsedTime(float* ms, void* start, void* end) { return cuEventElapsedTime_v2(ms, start, end); }

EMU_API int cuEventDestroy_v2(void* event_handle) {
    ENTER();
    EVENT(event_handle);
    driver().events.erase(event);
    delete event;
    return kSuccess;
}
EMU_API int cuEventDestroy(void* event) { return cuEventDestroy_v2(event); }
