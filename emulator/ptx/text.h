// text.h: pieces of PTX text. What is not understood throws std::runtime_error.
#pragma once

#include <string>
#include <vector>

#include "machine.h"

namespace ptx {

string trim(const string& s);
bool starts(const string& s, const char* with);
string without_comments(const string& s);
inline u64 align_up(u64 v, u64 a) { return (v + a - 1) / a * a; }

struct Type {
    char kind;  // s u b f; p: predicate; h: packed or 16-bit floats
    u32 bits;
};
Type type_of(const string& t);  // without the point

struct Declared {  // ".align 4 .b8 name[32]" and the like
    string name;
    u32 align = 1, bytes = 0;
    bool open = false;  // name[]
};
Declared declaration(const string& text);

std::vector<string> split_operands(const string& s);
std::vector<string> elements(const string& s);  // of {a, b}, or a alone

}  // namespace ptx
