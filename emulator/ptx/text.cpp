// text.cpp: see text.h.
#include "text.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>

namespace ptx {

string trim(const string& s) {
    size_t a = 0, b = s.size();
    while (a < b && isspace(static_cast<unsigned char>(s[a]))) ++a;
    while (b > a && isspace(static_cast<unsigned char>(s[b - 1]))) --b;
    return s.substr(a, b - a);
}
bool starts(const string& s, const char* with) { return s.compare(0, strlen(with), with) == 0; }

string without_comments(const string& s) {
    string out;
    out.reserve(s.size());
    bool quoted = false;
    for (size_t i = 0; i < s.size(); ++i) {
        if (s[i] == '"') quoted = !quoted;
        if (!quoted && s[i] == '/' && i + 1 < s.size() && s[i + 1] == '/') {
            while (i < s.size() && s[i] != '\n') ++i;
            out += '\n';
        } else if (!quoted && s[i] == '/' && i + 1 < s.size() && s[i + 1] == '*') {
            i = s.find("*/", i + 2);
            if (i == string::npos) break;
            ++i;
        } else {
            out += s[i];
        }
    }
    return out;
}

Type type_of(const string& t) {
    if (t == "pred") return {'p', 1};
    if (t == "f16" || t == "bf16") return {'h', 16};
    if (t == "f16x2" || t == "bf16x2") return {'h', 32};
    if (t.size() >= 2 && strchr("subf", t[0]) != nullptr) {
        const int n = atoi(t.c_str() + 1);
        if (n == 8 || n == 16 || n == 32 || n == 64) return {t[0], static_cast<u32>(n)};
    }
    throw std::runtime_error("unknown type ." + t);
}

Declared declaration(const string& text) {
    Declared d;
    std::istringstream in(text);
    string word, elem;
    u32 size = 0;
    while (in >> word) {
        if (word == ".align") {
            in >> d.align;
        } else if (word[0] == '.') {
            try {
                size = type_of(word.substr(1)).bits / 8;
                elem = word;
            } catch (std::runtime_error&) {
            }
        } else {
            string rest;
            std::getline(in, rest);
            word += rest;
            break;
        }
    }
    if (size == 0) throw std::runtime_error("declaration not understood: " + text);
    const size_t bracket = word.find('[');
    d.name = trim(word.substr(0, bracket));
    d.bytes = size;
    if (bracket != string::npos) {
        const string n = trim(word.substr(bracket + 1, word.find(']') - bracket - 1));
        d.open = n.empty();
        d.bytes = n.empty() ? 0 : size * static_cast<u32>(strtoul(n.c_str(), nullptr, 0));
        if (word.find('[', bracket + 1) != string::npos) throw std::runtime_error("two dimensions: " + text);
    }
    d.align = std::max(d.align, size);
    return d;
}

std::vector<string> split_operands(const string& s) {
    std::vector<string> out;
    int depth = 0;
    string one;
    for (char c : s) {
        if (c == '{' || c == '[' || c == '(') ++depth;
        if (c == '}' || c == ']' || c == ')') --depth;
        if (c == ',' && depth == 0) {
            out.push_back(trim(one));
            one.clear();
        } else {
            one += c;
        }
    }
    if (!trim(one).empty()) out.push_back(trim(one));
    return out;
}
std::vector<string> elements(const string& s) {
    if (!s.empty() && s[0] == '{') return split_operands(s.substr(1, s.rfind('}') - 1));
    return {s};
}

}  // namespace ptx
