// driver_memory.cpp: allocation, copies, memsets.
#include <cstring>

#include "driver.h"
#include "memory.h"
#include "result.h"

using namespace emu;

namespace {

// Whole range within one allocation, else the call is refused.
int check_device(uint64_t pointer, size_t bytes, const char* what) {
    if (device_heap().find(reinterpret_cast<void*>(pointer), bytes) != nullptr) return kSuccess;
    return refuse(kInvalidValue, std::string(what) + " of " + std::to_string(bytes) +
                                     " bytes: " + describe_address(reinterpret_cast<void*>(pointer)));
}

// Pinned memory is bounds-checked; other host memory is the caller's business.
int check_host(const void* p, size_t bytes, const char* what) {
    if (p == nullptr) return refuse(kInvalidValue, std::string(what) + ": null host pointer");
    if (!pinned_heap().in_range(p) || pinned_heap().find(p, bytes) != nullptr) return kSuccess;
    return refuse(kInvalidValue,
                  std::string(what) + " of " + std::to_string(bytes) + " bytes: " + pinned_heap().describe(p));
}

int run_now(Stream& stream, Node node) {
    Queue& queue = driver().queue;
    const int code = queue.enqueue(stream, std::move(node));
    if (code != kSuccess) return code;
    return after_work(queue.run_until(stream.last));
}

int to_device(Stream& stream, uint64_t to, const void* from, size_t bytes, bool now, const char* what) {
    if (bytes == 0) return kSuccess;
    if (int code = check_device(to, bytes, what)) return code;
    if (int code = check_host(from, bytes, what)) return code;
    Node node;
    node.work = Work::kToDevice;
    node.to = reinterpret_cast<unsigned char*>(to);
    node.from = static_cast<const unsigned char*>(from);
    node.bytes = bytes;
    if (now) return run_now(stream, std::move(node));
    // As the driver's manual says: pageable memory is staged before the call returns, pinned memory is read when the
    // copy runs. In a graph both are read at each replay.
    if (!pinned_heap().in_range(from) && !stream.capture) node.staged.assign(node.from, node.from + bytes);
    return driver().queue.enqueue(stream, std::move(node));
}

int to_host(Stream& stream, void* to, uint64_t from, size_t bytes, bool now, const char* what) {
    if (bytes == 0) return kSuccess;
    if (int code = check_device(from, bytes, what)) return code;
    if (int code = check_host(to, bytes, what)) return code;
    Node node;
    node.work = Work::kToHost;
    node.to = static_cast<unsigned char*>(to);
    node.from = reinterpret_cast<const unsigned char*>(from);
    node.bytes = bytes;
    // A copy to pageable memory returns when it is complete.
    if (now || (!pinned_heap().in_range(to) && !stream.capture)) return run_now(stream, std::move(node));
    return driver().queue.enqueue(stream, std::move(node));
}

int on_device(Stream& stream, uint64_t to, uint64_t from, size_t bytes, const char* what) {
    if (bytes == 0) return kSuccess;
    if (int code = check_device(to, bytes, what)) return code;
    if (int code = check_device(from, bytes, what)) return code;
    Node node;
    node.work = Work::kOnDevice;
    node.to = reinterpret_cast<unsigned char*>(to);
    node.from = reinterpret_cast<const unsigned char*>(from);
    node.bytes = bytes;
    return driver().queue.enqueue(stream, std::move(node));
}

int set_memory(Stream& stream, uint64_t to, uint32_t value, uint32_t width, size_t count, const char* what) {
    if (count == 0) return kSuccess;
    if (to % width != 0) return refuse(kInvalidValue, std::string(what) + ": misaligned");
    if (int code = check_device(to, count * width, what)) return code;
    Node node;
    node.work = Work::kMemset;
    node.to = reinterpret_cast<unsigned char*>(to);
    node.bytes = count * width;
    node.value = value;
    node.width = width;
    return driver().queue.enqueue(stream, std::move(node));
}

}  // namespace

#define STREAM(handle)                    \
    Stream* stream = find_stream(handle); \
    if (stream == nullptr) return kInvalidHandle

EMU_API int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    ENTER();
    *total = device_heap().capacity();
    *free_bytes = *total - device_heap().live_bytes();
    return kSuccess;
}
EMU_API int cuMemGetInfo(size_t* free_bytes, size_t* total) { return cuMemGetInfo_v2(free_bytes, total); }

EMU_API int cuMemAlloc_v2(uint64_t* out, size_t bytes) {
    ENTER_UNCAPTURED();
    void* p = nullptr;
    if (int code = device_heap().allocate(bytes, &p)) {
        return refuse(code, "cuMemAlloc of " + std::to_string(bytes) + " bytes, " +
                                std::to_string(device_heap().live_bytes()) + " in use");
    }
    ++counters().allocations;
    *out = reinterpret_cast<uint64_t>(p);
    return kSuccess;
}
EMU_API int cuMemAlloc(uint64_t* out, size_t bytes) { return cuMemAlloc_v2(out, bytes); }

// The real call also waits for the device.
EMU_API int cuMemFree_v2(uint64_t pointer) {
    ENTER_UNCAPTURED();
    if (pointer == 0) return kSuccess;
    if (int code = after_work(driver().queue.run_until(nullptr))) return code;
    if (device_heap().release(reinterpret_cast<void*>(pointer)) == kSuccess) return kSuccess;
    return refuse(kInvalidValue, "cuMemFree: " + describe_address(reinterpret_cast<void*>(pointer)));
}
EMU_API int cuMemFree(uint64_t pointer) { return cuMemFree_v2(pointer); }

EMU_API int cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    ENTER_UNCAPTURED();
    if (int code = pinned_heap().allocate(bytes, out))
        return refuse(code, "cuMemHostAlloc of " + std::to_string(bytes) + " bytes");
    ++counters().allocations;
    return kSuccess;
}
EMU_API int cuMemAllocHost_v2(void** out, size_t bytes) { return cuMemHostAlloc(out, bytes, 0); }

EMU_API int cuMemFreeHost(void* p) {
    ENTER_UNCAPTURED();
    if (int code = after_work(driver().queue.run_until(nullptr))) return code;
    if (pinned_heap().release(p) == kSuccess) return kSuccess;
    return refuse(kInvalidValue, "cuMemFreeHost: " + pinned_heap().describe(p));
}

EMU_API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* handle) {
    ENTER();
    STREAM(handle);
    return to_device(*stream, to, from, bytes, false, __func__);
}
EMU_API int cuMemcpyHtoDAsync(uint64_t to, const void* from, size_t bytes, void* handle) {
    return cuMemcpyHtoDAsync_v2(to, from, bytes, handle);
}

EMU_API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* handle) {
    ENTER();
    STREAM(handle);
    return to_host(*stream, to, from, bytes, false, __func__);
}
EMU_API int cuMemcpyDtoHAsync(void* to, uint64_t from, size_t bytes, void* handle) {
    return cuMemcpyDtoHAsync_v2(to, from, bytes, handle);
}

EMU_API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* handle) {
    ENTER();
    STREAM(handle);
    return on_device(*stream, to, from, bytes, __func__);
}
EMU_API int cuMemcpyDtoDAsync(uint64_t to, uint64_t from, size_t bytes, void* handle) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, handle);
}

// The blocking copies use the null stream: they do not wait for streams made with CU_STREAM_NON_BLOCKING.
EMU_API int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    ENTER_UNCAPTURED();
    return to_device(*driver().queue.null_stream(), to, from, bytes, true, __func__);
}
EMU_API int cuMemcpyHtoD(uint64_t to, const void* from, size_t bytes) { return cuMemcpyHtoD_v2(to, from, bytes); }

EMU_API int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    ENTER_UNCAPTURED();
    return to_host(*driver().queue.null_stream(), to, from, bytes, true, __func__);
}
EMU_API int cuMemcpyDtoH(void* to, uint64_t from, size_t bytes) { return cuMemcpyDtoH_v2(to, from, bytes); }

EMU_API int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    ENTER_UNCAPTURED();
    return on_device(*driver().queue.null_stream(), to, from, bytes, __func__);
}
EMU_API int cuMemcpyDtoD(uint64_t to, uint64_t from, size_t bytes) { return cuMemcpyDtoD_v2(to, from, bytes); }

EMU_API int cuMemsetD8Async(uint64_t to, unsigned char value, size_t count, void* handle) {
    ENTER();
    STREAM(handle);
    return set_memory(*stream, to, value, 1, count, __func__);
}

EMU_API int cuMemsetD32Async(uint64_t to, unsigned value, size_t count, void* handle) {
    ENTER();
    STREAM(handle);
    return set_memory(*stream, to, value, 4, count, __func__);
}

EMU_API int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t count) {
    ENTER_UNCAPTURED();
    return set_memory(*driver().queue.null_stream(), to, value, 1, count, __func__);
}

EMU_API int cuMemsetD32_v2(uint64_t to, unsigned value, size_t count) {
    ENTER_UNCAPTURED();
    return set_memory(*driver().queue.null_stream(), to, value, 4, count, __func__);
}
