// driver_module.cpp: modules, functions, launches. A module is any image: the kernels are in this library. But of a fat
// binary only the kernels of its source file are found, whose path it names: a real driver finds no others either.
#include <cstring>
#include <utility>

#include "driver.h"
#include "memory.h"
#include "result.h"

using namespace emu;

namespace {

constexpr uint32_t kDefaultDynamic = 48 * 1024;

Function* find_function(void* handle) {
    for (const auto& entry : driver().functions) {
        if (entry.second.get() == handle) return entry.second.get();
    }
    return nullptr;
}

// Head of what nvcc -fatbin makes.
struct FatBinary {
    uint32_t magic;
    uint16_t version, head_bytes;
    uint64_t bytes;
};

std::map<void*, const char*>& images() {
    static std::map<void*, const char*> all;
    return all;
}

// Whether the image of a module was compiled from the kernel's file. Names of kernels are compressed in a fat binary,
// the path is not. Any other image than a fat binary has all kernels.
bool has_kernel(void* module, const Kernel& kernel) {
    static std::map<std::pair<const char*, std::string>, bool> known;
    const char* image = images()[module];
    if (strncmp(image, "\x50\xed\x55\xba", 4) != 0) return true;
    const char* name = strrchr(kernel.file, '/');
    const std::string path = name != nullptr ? name : kernel.file;
    FatBinary head;
    const auto [entry, is_new] = known.try_emplace({image, path}, false);
    if (is_new) {
        memcpy(&head, image, sizeof(head));
        entry->second = memmem(image, head.head_bytes + head.bytes, path.c_str(), path.size() + 1) != nullptr;
    }
    return entry->second;
}

}  // namespace

#define FUNCTION(handle)                        \
    Function* function = find_function(handle); \
    if (function == nullptr) return kInvalidHandle

EMU_API int cuModuleLoadData(void** module, const void* image) {
    ENTER_UNCAPTURED();
    if (image == nullptr) return kInvalidValue;
    *module = new char;
    driver().modules.insert(*module);
    images()[*module] = static_cast<const char*>(image);
    return kSuccess;
}

EMU_API int cuModuleUnload(void* module) {
    ENTER_UNCAPTURED();
    if (driver().modules.erase(module) == 0) return kInvalidHandle;
    images().erase(module);
    delete static_cast<char*>(module);
    return kSuccess;
}

EMU_API int cuModuleGetFunction(void** out, void* module, const char* name) {
    ENTER();
    if (driver().modules.count(module) == 0) return kInvalidHandle;
    const Kernel* kernel = find_kernel(name);
    if (kernel == nullptr || !has_kernel(module, *kernel)) {
        ++counters().lookups_failed;
        return refuse(kNotFound, std::string("no kernel ") + name);
    }
    auto& function = driver().functions[kernel];
    if (!function) function = std::make_unique<Function>(Function{kernel, kDefaultDynamic});
    *out = function.get();
    return kSuccess;
}

// Attributes: 0 MAX_THREADS_PER_BLOCK, 8 MAX_DYNAMIC_SHARED_SIZE_BYTES, 9 PREFERRED_SHARED_MEMORY_CARVEOUT.
EMU_API int cuFuncSetAttribute(void* handle, int attribute, int value) {
    ENTER();
    FUNCTION(handle);
    if (attribute == 9) return kSuccess;
    if (attribute != 8 || value < 0 || static_cast<uint32_t>(value) > kSharedLimit) {
        return refuse(kInvalidValue, std::string("cuFuncSetAttribute of ") + function->kernel->name + ": attribute " +
                                         std::to_string(attribute) + " = " + std::to_string(value));
    }
    function->max_dynamic = static_cast<uint32_t>(value);
    return kSuccess;
}

EMU_API int cuFuncGetAttribute(int* value, int attribute, void* handle) {
    ENTER();
    FUNCTION(handle);
    *value = 0;
    if (attribute == 0) *value = static_cast<int>(function->kernel->threads);
    if (attribute == 4) *value = 32;                    // NUM_REGS: we do not know
    if (attribute == 5 || attribute == 6) *value = 86;  // PTX_VERSION, BINARY_VERSION
    if (attribute == 8) *value = static_cast<int>(function->max_dynamic);
    return kSuccess;
}

EMU_API int cuFuncGetParamInfo(void* handle, size_t index, size_t* offset, size_t* size) {
    ENTER();
    FUNCTION(handle);
    if (index != 0) return kInvalidValue;  // kernels of ours have one parameter; callers ask until this error
    *offset = 0;
    if (size != nullptr) *size = function->kernel->params_bytes;
    return kSuccess;
}

EMU_API int cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                           unsigned block_y, unsigned block_z, unsigned shared, void* stream_handle, void** params,
                           void** extra) {
    ENTER();
    FUNCTION(handle);
    Stream* stream = find_stream(stream_handle);
    if (stream == nullptr) return kInvalidHandle;
    const Kernel& kernel = *function->kernel;
    const std::string head = std::string("launch of ") + kernel.name + ": ";
    if (extra != nullptr || params == nullptr || params[0] == nullptr)
        return refuse(kInvalidValue, head + "no parameters");
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > 2147483647u || grid_y > 65535 || grid_z > 65535) {
        return refuse(kInvalidValue, head + "grid " + std::to_string(grid_x) + " x " + std::to_string(grid_y) + " x " +
                                         std::to_string(grid_z));
    }
    if (block_x != kernel.threads || block_y != 1 || block_z != 1) {
        return refuse(kInvalidValue, head + "block " + std::to_string(block_x) + " x " + std::to_string(block_y) +
                                         " x " + std::to_string(block_z) + "; the kernel is written for " +
                                         std::to_string(kernel.threads));
    }
    if (shared > function->max_dynamic) {
        return refuse(kInvalidValue, head + std::to_string(shared) + " bytes of dynamic shared memory; allowed are " +
                                         std::to_string(function->max_dynamic) + " (cuFuncSetAttribute)");
    }
    Node node;
    node.work = Work::kLaunch;
    node.kernel = &kernel;
    node.grid = Index{grid_x, grid_y, grid_z};
    node.shared = shared;
    node.params.resize(kernel.params_bytes);
    memcpy(node.params.data(), params[0], kernel.params_bytes);
    return driver().queue.enqueue(*stream, std::move(node));
}
