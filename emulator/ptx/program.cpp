// program.cpp: files, options, the report.
#include "program.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include <dirent.h>

#include "text.h"

namespace ptx {

const Options& options() {
    static const Options values = [] {
        const auto text = [](const char* name) { return string(getenv(name) != nullptr ? getenv(name) : ""); };
        Options o;
        o.folder = text("EMU_PTX");
        o.report = text("EMU_PTX_REPORT");
        o.solo = atoi(text("EMU_PTX_SOLO").c_str());
        o.mma_truncates = text("EMU_PTX_MMA") == "truncate";
        o.approx_ulps = atoi(text("EMU_PTX_APPROX").c_str());
        o.lines = !text("EMU_PTX_LINES").empty();
        const string fill = text("EMU_PTX_FILL");
        if (const size_t colon = fill.find(':'); colon != string::npos) {
            o.fill_kernel = fill.substr(0, colon);
            o.fill_text = atoi(fill.c_str() + colon + 1);
        }
        return o;
    }();
    return values;
}

void fault(int code, const char* format, ...) {
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    throw Fault{code, text};
}

void say(const string& line) {
    static std::mutex lock;
    std::lock_guard<std::mutex> hold(lock);
    fprintf(stderr, "ptx: %s\n", line.c_str());
    if (options().report.empty()) return;
    std::ofstream out(options().report, std::ios::app);
    out << line << "\n";
}

string Kernel::place(const Inst& i) const {
    const auto file = module->files.find(i.file);
    return (file == module->files.end() ? "?" : file->second) + ":" + std::to_string(i.line);
}

void warn(const Warp& w, const Inst& i, const char* what) {
    static std::mutex lock;
    static std::set<string> said;
    const Kernel& k = *w.kernel;
    const string text = "WARNING " + k.name + ": " + what + ": " + k.text_of(i) + " (" + k.place(i) + ")";
    std::lock_guard<std::mutex> hold(lock);
    if (said.insert(text).second) say(text);
}

namespace {

void parse_kernel(const Module& module, const string& header, const string& body, Program& program) {
    auto kernel = std::make_unique<Kernel>();
    kernel->module = &module;
    size_t at = header.find(".entry") + 6;
    const size_t open = header.find('(', at);
    kernel->name = trim(header.substr(at, open == string::npos ? string::npos : open - at));
    size_t close = open;
    if (open != string::npos) {
        close = header.find(')', open);
        u32 offset = 0;
        for (const string& p : split_operands(header.substr(open + 1, close - open - 1))) {
            if (p.empty()) continue;
            const Declared d = declaration(p.substr(p.find(".param") + 6));
            offset = static_cast<u32>(align_up(offset, d.align));
            offset += d.bytes;
            kernel->params += 1;
        }
        kernel->params_bytes = offset;
    }
    const string rest = close == string::npos ? "" : header.substr(close + 1);
    const size_t max = rest.find(".maxntid"), blocks = rest.find(".minnctapersm");
    if (max != string::npos) {
        u32 x = 1, y = 1, z = 1;
        sscanf(rest.c_str() + max + 8, "%u , %u , %u", &x, &y, &z);
        kernel->threads = x * y * z;
    }
    if (blocks != string::npos) kernel->min_blocks = static_cast<u32>(atoi(rest.c_str() + blocks + 13));
    kernel->body = body;
    program.kernels[kernel->name] = std::move(kernel);
}

// Top level of a file: directives, declarations of shared arrays, kernels.
class Reader {
  public:
    Reader(const string& path, const string& text, Program& program)
        : path_(path), text_(text), program_(program), module_(std::make_unique<Module>()) {
        module_->path = path;
    }
    void run() {
        while (pos_ < text_.size()) {
            if (isspace(static_cast<unsigned char>(text_[pos_])))
                ++pos_;
            else if (is(".version") || is(".target") || is(".address_size") || is(".file"))
                line();
            else if (is(".section"))
                pos_ = matching(text_.find('{', pos_)) + 1;
            else
                statement();
        }
        program_.modules.push_back(std::move(module_));
    }

  private:
    [[noreturn]] void fail(const string& what) const {
        fprintf(stderr, "ptx: %s: %s\n", path_.c_str(), what.c_str());
        abort();
    }
    bool is(const char* with) const { return text_.compare(pos_, strlen(with), with) == 0; }
    size_t matching(size_t brace) const {
        int depth = 0;
        for (size_t i = brace; i < text_.size(); ++i) {
            if (text_[i] == '{') ++depth;
            if (text_[i] == '}' && --depth == 0) return i;
        }
        return text_.size();
    }
    void line() {
        const size_t end = std::min(text_.find('\n', pos_), text_.size());
        if (is(".file")) {
            const string all = text_.substr(pos_, end - pos_);
            const size_t a = all.find('"'), b = all.rfind('"');
            const string full = all.substr(a + 1, b - a - 1);
            module_->files[atoi(all.c_str() + 5)] = full.substr(full.rfind('/') + 1);
        }
        pos_ = end;
    }
    void statement() {
        const size_t brace = text_.find('{', pos_), semicolon = text_.find(';', pos_);
        if (brace != string::npos && brace < semicolon) {
            const string header = text_.substr(pos_, brace - pos_);
            if (header.find(".entry") == string::npos)
                fail("device functions and initialised variables are not supported: " + header.substr(0, 100));
            const size_t end = matching(brace);
            parse_kernel(*module_, header, text_.substr(brace, end + 1 - brace), program_);
            pos_ = end + 1;
            return;
        }
        if (semicolon == string::npos) fail("not understood: " + text_.substr(pos_, 100));
        const string text = text_.substr(pos_, semicolon - pos_);
        pos_ = semicolon + 1;
        const size_t shared = text.find(".shared");
        if (shared != string::npos) {
            const Declared d = declaration(text.substr(shared + 7));
            module_->shared[d.name] = Shared{d.name, d.align, d.bytes, text.find(".extern") != string::npos || d.open};
        } else if (text.find(".pragma") == string::npos) {
            fail("declaration: " + text);
        }
    }

    const string& path_;
    const string& text_;
    Program& program_;
    std::unique_ptr<Module> module_;
    size_t pos_ = 0;
};

void load_module(const string& path, Program& program) {
    std::ifstream in(path);
    std::stringstream all;
    all << in.rdbuf();
    const string text = without_comments(all.str());
    Reader(path, text, program).run();
}

// Instructions of a kernel that ran, by their number in its text; lines of the sources they stand for, reached and not.
void report_lines(std::ostream& out, const Kernel& k) {
    std::set<string> missed, reached;
    for (size_t i = 0; i < k.hit.size(); ++i) {
        if (k.code[i].line != 0) (k.hit[i] ? reached : missed).insert(k.place(k.code[i]));
    }
    for (auto& l : reached) missed.erase(l);
    std::set<int> ran;
    for (size_t i = 0; i < k.hit.size(); ++i) {
        if (k.hit[i] && k.code[i].text >= 0) ran.insert(k.code[i].text);
    }
    out << "RAN " << k.name << " " << k.texts.size();
    for (int text : ran) out << " " << text;
    out << "\n";
    for (const auto& [what, lines] : {std::pair{"REACHED", &reached}, std::pair{"MISSED", &missed}}) {
        out << what << " " << k.name;
        for (auto& l : *lines) out << " " << l;
        out << "\n";
    }
}

// EMU_PTX_REPORT: a line for each kernel that ran.
void report() {
    if (options().report.empty()) return;
    std::ofstream out(options().report, std::ios::app);
    for (auto& entry : program().kernels) {
        const Kernel& k = *entry.second;
        if (k.launches.load() == 0) continue;
        size_t hit = 0;
        for (u8 h : k.hit) hit += h;
        // As ptxas lays it out: dynamic memory begins at a multiple of 1,024.
        const u64 plain = k.uses_dynamic ? align_up(k.static_plain, 1024) : k.static_plain;
        out << "KERNEL " << k.name << " launches " << k.launches.load() << " blocks " << k.blocks.load()
            << " warp_instructions " << k.executed.load() << " covered " << hit << " of " << k.code.size() << " params "
            << k.params_bytes << " threads " << k.threads << " min_blocks " << k.min_blocks << " static_shared "
            << plain << " dynamic_shared_max " << k.max_dynamic.load() << " local " << k.local_bytes << "\n";
        if (k.name == options().fill_kernel) out << "FILLED " << k.name << " bytes " << k.filled.load() << "\n";
        // Where zeros that nobody ever needed would not be missed.
        for (size_t i = 0; i < k.hit.size(); ++i) {
            const Inst& copy = k.code[i];
            if (copy.run != cp_async || !copy.flag || !k.hit[i]) continue;
            out << "COPIES " << k.name << " " << copy.text << (k.zeros[i] ? " fills" : " never fills") << "\n";
        }
        if (options().lines) report_lines(out, k);
    }
}

}  // namespace

Program& program() {
    static Program* const loaded = [] {
        auto* p = new Program;
        const string& folder = options().folder;
        DIR* dir = opendir(folder.c_str());
        if (dir == nullptr) {
            fprintf(stderr, "ptx: EMU_PTX names no folder: %s\n", folder.c_str());
            abort();
        }
        std::vector<string> paths;
        while (const dirent* entry = readdir(dir)) {
            const string name = entry->d_name;
            if (name.size() > 4 && name.substr(name.size() - 4) == ".ptx") paths.push_back(folder + "/" + name);
        }
        closedir(dir);
        std::sort(paths.begin(), paths.end());
        for (const string& path : paths) load_module(path, *p);
        atexit(report);
        return p;
    }();
    return *loaded;
}

}  // namespace ptx
