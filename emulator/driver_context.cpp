// driver_context.cpp: initialisation, device and context.
#include <cstdlib>
#include <cstring>

#include "driver.h"
#include "fault.h"
#include "memory.h"
#include "result.h"

namespace emu {

namespace {
thread_local void* current_context = nullptr;
char primary_context;  // its address is the handle

struct ErrorText {
    int code;
    const char *name, *text;
};
constexpr ErrorText kErrors[] = {
    {kSuccess, "CUDA_SUCCESS", "no error"},
    {kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {kNotFound, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {kNotReady, "CUDA_ERROR_NOT_READY", "device not ready"},
    {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {kLaunchOutOfResources, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {kLaunchTimeout, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {kMisalignedAddress, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {kNotSupported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {kCaptureInvalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {kCaptureMerge, "CUDA_ERROR_STREAM_CAPTURE_MERGE",
     "operation would result in a merge of separate capture sequences"},
    {kCaptureUnmatched, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {kCaptureUnjoined, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {kCaptureIsolation, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {kCaptureImplicit, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {kCapturedEvent, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {kCaptureWrongThread, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {kUnknown, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const ErrorText* find_error(int code) {
    for (const ErrorText& error : kErrors) {
        if (error.code == code) return &error;
    }
    return nullptr;
}
}  // namespace

const char* result_name(int code) {
    const ErrorText* error = find_error(code);
    return error != nullptr ? error->name : nullptr;
}

const char* result_text(int code) {
    const ErrorText* error = find_error(code);
    return error != nullptr ? error->text : nullptr;
}

Driver& driver() {
    static Driver* const one = new Driver;  // never destroyed: other libraries' destructors may still call us
    return *one;
}

CallCounters& counters() {
    static CallCounters values;
    return values;
}

Call::Call(bool needs_context) : status(kSuccess), hold_(driver().lock) {
    if (!driver().initialised) {
        status = kNotInitialized;
    } else if (needs_context && current_context == nullptr) {
        status = kInvalidContext;
    } else {
        status = driver().sticky;
    }
}

int refuse(int code, const std::string& why) {
    driver().report = why;
    return code;
}

int after_work(int code) {
    if (code == kSuccess) return code;
    driver().report = driver().queue.report;
    driver().sticky = code;
    return code;
}

}  // namespace emu

using namespace emu;

EMU_API int cuInit(unsigned flags) {
    if (flags != 0) return kInvalidValue;
    std::lock_guard<std::mutex> hold(driver().lock);
    driver().initialised = true;
    prepare_thread_for_faults();
    return kSuccess;
}

// 1000 * major + 10 * minor of CUDA, by EMU_DRIVER_VERSION. What a driver of that version lacks is left out of the
// library `bare/libcuda.so` (build.rs), not here.
EMU_API int cuDriverGetVersion(int* version) {
    if (version == nullptr) return kInvalidValue;
    const char* wanted = getenv("EMU_DRIVER_VERSION");
    *version = wanted != nullptr ? atoi(wanted) : 13000;
    return kSuccess;
}

EMU_API int cuGetErrorName(int code, const char** out) {
    *out = result_name(code);
    return *out != nullptr ? kSuccess : kInvalidValue;
}

EMU_API int cuGetErrorString(int code, const char** out) {
    *out = result_text(code);
    return *out != nullptr ? kSuccess : kInvalidValue;
}

EMU_API int cuDeviceGetCount(int* count) {
    Call call(false);
    if (call.status == kNotInitialized) return call.status;
    *count = 1;
    return kSuccess;
}

EMU_API int cuDeviceGet(int* device, int ordinal) {
    Call call(false);
    if (call.status == kNotInitialized) return call.status;
    if (ordinal != 0) return kInvalidDevice;
    *device = 0;
    return kSuccess;
}

EMU_API int cuDeviceGetName(char* name, int len, int device) {
    if (device != 0) return kInvalidDevice;
    if (len <= 0) return kInvalidValue;
    strncpy(name, "spatialssl emulated device", static_cast<size_t>(len));
    name[len - 1] = '\0';
    return kSuccess;
}

EMU_API int cuDeviceGetUuid(unsigned char* uuid, int device) {
    if (device != 0) return kInvalidDevice;
    memcpy(uuid, "spatialssl\0emul\0", 16);
    return kSuccess;
}

EMU_API int cuDeviceGetUuid_v2(unsigned char* uuid, int device) { return cuDeviceGetUuid(uuid, device); }

// Numbers of CUdevice_attribute. What is not listed is 0: the feature is missing.
EMU_API int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (device != 0) return kInvalidDevice;
    struct Attribute {
        int number, value;
    };
    static constexpr Attribute kAttributes[] = {
        {1, 1024},        // MAX_THREADS_PER_BLOCK
        {2, 1024},        // MAX_BLOCK_DIM_X
        {3, 1024},        // MAX_BLOCK_DIM_Y
        {4, 64},          // MAX_BLOCK_DIM_Z
        {5, 2147483647},  // MAX_GRID_DIM_X
        {6, 65535},       // MAX_GRID_DIM_Y
        {7, 65535},       // MAX_GRID_DIM_Z
        {8, 49152},       // MAX_SHARED_MEMORY_PER_BLOCK
        {9, 65536},       // TOTAL_CONSTANT_MEMORY
        {10, 32},         // WARP_SIZE
        {12, 65536},      // MAX_REGISTERS_PER_BLOCK
        {13, 1000000},    // CLOCK_RATE, kHz
        {15, 1},          // GPU_OVERLAP
        {16, 4},          // MULTIPROCESSOR_COUNT
        {19, 1},          // CAN_MAP_HOST_MEMORY
        {31, 1},          // CONCURRENT_KERNELS
        {36, 1000000},    // MEMORY_CLOCK_RATE, kHz
        {37, 64},         // GLOBAL_MEMORY_BUS_WIDTH, bits
        {38, 1048576},    // L2_CACHE_SIZE
        {39, 1536},       // MAX_THREADS_PER_MULTIPROCESSOR
        {40, 2},          // ASYNC_ENGINE_COUNT
        {41, 1},          // UNIFIED_ADDRESSING
        {75, 8},          // COMPUTE_CAPABILITY_MAJOR
        {76, 6},          // COMPUTE_CAPABILITY_MINOR
        {78, 1},          // STREAM_PRIORITIES_SUPPORTED
        {81, 102400},     // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        {82, 65536},      // MAX_REGISTERS_PER_MULTIPROCESSOR
        {97, 101376},     // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        {106, 16},        // MAX_BLOCKS_PER_MULTIPROCESSOR
        {111, 1024},      // RESERVED_SHARED_MEMORY_PER_BLOCK
    };
    *value = 0;
    for (const Attribute& one : kAttributes) {
        if (one.number == attribute) *value = one.value;
    }
    return kSuccess;
}

EMU_API int cuDeviceComputeCapability(int* major, int* minor, int device) {
    if (device != 0) return kInvalidDevice;
    *major = 8;
    *minor = 6;
    return kSuccess;
}

EMU_API int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    if (device != 0) return kInvalidDevice;
    *bytes = device_heap().capacity();
    return kSuccess;
}
EMU_API int cuDeviceTotalMem(size_t* bytes, int device) { return cuDeviceTotalMem_v2(bytes, device); }

EMU_API int cuDevicePrimaryCtxRetain(void** context, int device) {
    Call call(false);
    if (call.status != kSuccess) return call.status;
    if (device != 0) return kInvalidDevice;
    ++driver().contexts;
    *context = &primary_context;
    return kSuccess;
}

EMU_API int cuDevicePrimaryCtxRelease_v2(int device) {
    Call call(false);
    Driver& d = driver();
    if (device != 0) return kInvalidDevice;
    if (d.contexts == 0) return kInvalidContext;
    if (--d.contexts > 0) return call.status;
    if (d.sticky == kSuccess) after_work(d.queue.run_until(nullptr));
    const size_t leaked = device_heap().live_count() + pinned_heap().live_count();
    if (leaked != 0) {
        counters().leaks += leaked;
        d.report = "context released with " + std::to_string(leaked) +
                   " allocations alive:" + device_heap().list_live() + pinned_heap().list_live();
    }
    return call.status;
}
EMU_API int cuDevicePrimaryCtxRelease(int device) { return cuDevicePrimaryCtxRelease_v2(device); }

EMU_API int cuCtxSetCurrent(void* context) {
    Call call(false);
    if (context != nullptr && context != &primary_context) return kInvalidContext;
    current_context = context;
    return call.status;
}

EMU_API int cuCtxGetCurrent(void** context) {
    Call call(false);
    *context = current_context;
    return call.status;
}

EMU_API int cuCtxGetDevice(int* device) {
    ENTER();
    *device = 0;
    return kSuccess;
}

EMU_API int cuCtxSynchronize() {
    ENTER_UNCAPTURED();
    return after_work(driver().queue.run_until(nullptr));
}

EMU_API int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER();
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return kSuccess;
}

EMU_API int cuProfilerStart() { return kSuccess; }
EMU_API int cuProfilerStop() { return kSuccess; }
