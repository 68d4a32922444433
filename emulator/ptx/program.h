// program.h: everything that was read from the folder of .ptx files.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "machine.h"

namespace ptx {

struct Program {
    std::vector<std::unique_ptr<Module>> modules;
    std::map<string, std::unique_ptr<Kernel>> kernels;
    std::mutex lock;  // for decoding
};

// Read at the first call.
Program& program();

// Adds a line to the report file, if there is one, and to standard error.
void say(const string& line);

}  // namespace ptx
