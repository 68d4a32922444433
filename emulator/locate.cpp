// locate.cpp: see locate.h.
#include "locate.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include <dlfcn.h>

namespace emu {

namespace {

// Wrappers would hide the line that matters.
bool is_wrapper(const std::string& file) {
    return file == "device.h" || file == "device_math.h" || file == "cu.cuh" || file == "ptx.cuh";
}

std::string base_name(const std::string& path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? path : path.substr(slash + 1);
}

}  // namespace

std::string locate(const void* pc) {
    Dl_info info;
    if (pc == nullptr || dladdr(pc, &info) == 0 || info.dli_fname == nullptr) return {};
    // The address is one of return: the call lies before it.
    const uintptr_t offset = reinterpret_cast<uintptr_t>(pc) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
    std::string path = info.dli_fname;
    for (size_t at = 0; (at = path.find('\'', at)) != std::string::npos; at += 4) path.replace(at, 1, "'\\''");
    char command[64];
    snprintf(command, sizeof(command), "' 0x%zx 2>/dev/null", static_cast<size_t>(offset));
    FILE* pipe = popen(("addr2line -i -e '" + path + command).c_str(), "r");
    std::vector<std::string> places;
    if (pipe != nullptr) {
        char line[1024];
        while (fgets(line, sizeof(line), pipe) != nullptr) {
            std::string place = base_name(line);
            place.resize(strcspn(place.c_str(), " \n"));  // also drops "(discriminator 3)"
            const size_t colon = place.find(':');
            if (colon == std::string::npos || place[0] == '?' || is_wrapper(place.substr(0, colon))) continue;
            places.push_back(place);
        }
        pclose(pipe);
    }
    std::string text;
    for (size_t i = 0; i < places.size() && i < 5; ++i) text += (i == 0 ? " at " : ", from ") + places[i];
    if (text.empty()) {
        char raw[300];
        snprintf(raw, sizeof(raw), " at %s+0x%zx", base_name(info.dli_fname).c_str(), static_cast<size_t>(offset));
        text = raw;
    }
    return text;
}

}  // namespace emu
