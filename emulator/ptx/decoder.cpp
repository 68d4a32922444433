// decoder.cpp: see decoder.h. Statements, registers, operands.
#include "decoder.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "lanes.h"
#include "numbers.h"

namespace ptx {

const char* const kSpecials[] = {"%tid.x",       "%tid.y",       "%tid.z",       "%ntid.x",      "%ntid.y",
                                 "%ntid.z",      "%ctaid.x",     "%ctaid.y",     "%ctaid.z",     "%nctaid.x",
                                 "%nctaid.y",    "%nctaid.z",    "%laneid",      "%warpid",      "%nwarpid",
                                 "%lanemask_eq", "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge"};
static_assert(kSpecialCount == sizeof(kSpecials) / sizeof(kSpecials[0]), "the count in decoder.h");

Run convert_bits(u32 from, u32 to, bool sign) {
#define CASE(f, t, F, SF, T) \
    if (from == f && to == t) return sign ? UN(T, SF, a) : UN(T, F, a);
    CASE(8, 16, u8, s8, u16)
    CASE(8, 32, u8, s8, u32)
    CASE(8, 64, u8, s8, u64)
    CASE(16, 8, u16, s16, u8)
    CASE(16, 32, u16, s16, u32)
    CASE(16, 64, u16, s16, u64)
    CASE(32, 8, u32, s32, u8)
    CASE(32, 16, u32, s32, u16)
    CASE(32, 64, u32, s32, u64)
    CASE(64, 8, u64, s64, u8)
    CASE(64, 16, u64, s64, u16)
    CASE(64, 32, u64, s64, u32)
#undef CASE
    throw std::runtime_error("no conversion");
}

void Decoder::run() {
    declare_shared();
    while (statement()) {
    }
    for (auto& fix : fixups_) {
        const auto at = labels_.find(fix.second);
        if (at == labels_.end()) throw std::runtime_error("no label " + fix.second);
        k_.code[fix.first].target = at->second;
    }
    Inst end;
    end.kind = Kind::kExit;
    end.run = +[](Warp&, const Inst&) {};
    k_.code.push_back(end);
    k_.regs_bytes = static_cast<u32>(align_up(top_, 128));
    k_.initial.assign(k_.regs_bytes, 0xff);
    for (auto& c : constants_) {
        u8* at = &k_.initial[c.second];
        const u32 size = c.first.first == 1 ? 4 : c.first.first / 8;
        for (u32 l = 0; l < (c.first.first == 1 ? 1u : 32u); ++l) memcpy(at + l * size, &c.first.second, size);
    }
    k_.hit.assign(k_.code.size(), 0);
    k_.zeros.assign(k_.code.size(), 0);
}

// Static arrays first, each with a gap behind it; then dynamic memory.
void Decoder::declare_shared() {
    for (auto& s : m_.shared) {
        if (!s.second.dynamic && k_.body.find(s.first) != string::npos) add_shared(s.second);
    }
}

void Decoder::add_shared(const Shared& s) {
    shared_end_ = static_cast<u32>(align_up(shared_end_, s.align));
    k_.shared[s.name] = {shared_end_, s.bytes};
    k_.static_plain = static_cast<u32>(align_up(k_.static_plain, s.align)) + s.bytes;
    shared_end_ = static_cast<u32>(align_up(shared_end_ + s.bytes + kGap, kGap));
    k_.static_bytes = shared_end_ - kSharedStart;
}

u32 Decoder::allocate(u32 bits) {
    if (bits == 1) {
        top_ += 4;
        return static_cast<u32>(top_ - 4);
    }
    top_ = align_up(top_, 64);
    top_ += 32 * (bits / 8);
    return static_cast<u32>(top_ - 32 * (bits / 8));
}

u32 Decoder::constant(u32 bits, u64 value) {
    if (bits == 1) value = value ? 0xffffffffu : 0;
    if (bits < 64 && bits > 1) value &= (u64{1} << bits) - 1;
    const auto found = constants_.find({bits, value});
    if (found != constants_.end()) return found->second;
    return constants_[{bits, value}] = allocate(bits);
}

bool Decoder::find(const string& name, Reg* out) {
    for (u32 s = 0; s < kSpecialCount; ++s) {
        if (name == kSpecials[s]) {
            *out = Reg{32, s * 128};
            return true;
        }
    }
    size_t digits = name.size();
    while (digits > 0 && isdigit(static_cast<unsigned char>(name[digits - 1]))) --digits;
    const string prefix = name.substr(0, digits);
    for (size_t s = scopes_.size(); s-- > 0;) {
        const auto exact = names_[s].find(name);
        if (exact != names_[s].end()) {
            *out = exact->second;
            return true;
        }
        const auto range = scopes_[s].find(prefix);
        if (range != scopes_[s].end() && digits < name.size()) {
            const u32 n = static_cast<u32>(atoi(name.c_str() + digits));
            if (n < range->second.count) {
                *out = Reg{range->second.bits, range->second.base + n * range->second.stride};
                return true;
            }
        }
    }
    return false;
}

void Decoder::declare_registers(const string& text) {  // .reg .b32 %r<36>, x, y
    std::istringstream in(text);
    string word, type;
    in >> word >> type;
    const u32 bits = type_of(type.substr(1)).bits;
    string rest;
    std::getline(in, rest);
    for (string name : split_operands(rest)) {
        const size_t angle = name.find('<');
        if (angle == string::npos) {
            names_.back()[name] = Reg{bits, allocate(bits)};
        } else {
            const u32 count = static_cast<u32>(atoi(name.c_str() + angle + 1));
            const u32 stride = bits == 1 ? 4 : static_cast<u32>(align_up(32 * bits / 8, 64));
            if (bits != 1) top_ = align_up(top_, 64);
            scopes_.back()[name.substr(0, angle)] = Registers{bits, static_cast<u32>(top_), count, stride};
            top_ += static_cast<u64>(count) * stride;
        }
    }
}

bool Decoder::symbol(const string& name, u64* address) {
    string base = name;
    s64 offset = 0;
    const size_t plus = name.find('+');
    if (plus != string::npos) {
        base = trim(name.substr(0, plus));
        offset = strtoll(name.c_str() + plus + 1, nullptr, 0);
    }
    const auto shared = k_.shared.find(base);
    if (shared != k_.shared.end()) {
        *address = shared->second.first + static_cast<u64>(offset);
        return true;
    }
    const auto module_shared = m_.shared.find(base);
    if (module_shared != m_.shared.end() && module_shared->second.dynamic) {
        k_.uses_dynamic = true;
        *address = kSharedStart + k_.static_bytes + static_cast<u64>(offset);
        return true;
    }
    const auto local = locals_.find(base);
    if (local != locals_.end()) {
        *address = local->second + static_cast<u64>(offset);
        return true;
    }
    if (base == k_.name + "_param_0") {
        *address = kParamBase + static_cast<u64>(offset);
        return true;
    }
    return false;
}

bool Decoder::immediate(const string& t, u64* value) {
    if (starts(t, "0f") || starts(t, "0F") || starts(t, "0d") || starts(t, "0D")) {
        *value = strtoull(t.c_str() + 2, nullptr, 16);
        return true;
    }
    if (t == "WARP_SZ") {
        *value = 32;
        return true;
    }
    if (t.empty() || !(isdigit(static_cast<unsigned char>(t[0])) || t[0] == '-')) return false;
    char* end = nullptr;
    *value = t[0] == '-' ? static_cast<u64>(strtoll(t.c_str(), &end, 0)) : strtoull(t.c_str(), &end, 0);
    if (*end == 'U') ++end;
    if (*end != '\0') throw std::runtime_error("number " + t);
    return true;
}

u32 Decoder::src(const string& t, u32 bits, char kind) {
    Reg r;
    if (find(t, &r)) {
        if (r.bits == bits) return r.offset;
        if (r.bits < bits || r.bits == 1 || bits == 1)
            throw std::runtime_error("register " + t + " is too narrow or a predicate");
        Inst i;
        i.a = r.offset;
        i.d = allocate(bits);
        i.run = convert_bits(r.bits, bits, false);
        emit(i);
        return i.d;
    }
    u64 value;
    if (immediate(t, &value)) {
        const bool hex_float = t.size() > 1 && t[0] == '0' && strchr("fFdD", t[1]) != nullptr && t.size() > 8;
        if (kind == 'f' && !hex_float) throw std::runtime_error("whole number for a float: " + t);
        if (hex_float && (t.size() == 10) != (bits == 32)) throw std::runtime_error("float of another size: " + t);
        return constant(bits, value);
    }
    if (symbol(t, &value)) return constant(bits, value);
    throw std::runtime_error("operand " + t);
}

u32 Decoder::dst(const string& t, u32 bits, bool sign) {
    if (t == "_") return allocate(bits);
    Reg r;
    if (!find(t, &r)) throw std::runtime_error("destination " + t);
    if (r.bits == bits) return r.offset;
    if (r.bits < bits || r.bits == 1 || bits == 1)
        throw std::runtime_error("destination " + t + " is too narrow or a predicate");
    Inst i;
    i.a = allocate(bits);
    i.d = r.offset;
    i.run = convert_bits(bits, r.bits, sign);
    after_.push_back(i);
    return i.a;
}

// [reg+imm], [symbol+imm], [imm]. Returns the register; `wide` says whether it has 64 bits.
u32 Decoder::address(const string& t, s64* offset, bool* wide, u32 symbol_bits) {
    if (t.size() < 2 || t[0] != '[' || t.back() != ']') throw std::runtime_error("address " + t);
    string inner = trim(t.substr(1, t.size() - 2));
    *offset = 0;
    const size_t plus = inner.find('+');
    const string base = trim(inner.substr(0, plus));
    Reg r;
    if (find(base, &r)) {
        if (plus != string::npos) *offset = strtoll(inner.c_str() + plus + 1, nullptr, 0);
        if (r.bits < 32) throw std::runtime_error("address register of " + t);
        *wide = r.bits == 64;
        return r.offset;
    }
    u64 value;
    if (!immediate(inner, &value) && !symbol(inner, &value)) throw std::runtime_error("address " + t);
    *wide = symbol_bits == 64;
    return constant(symbol_bits, value);
}

void Decoder::emit(Inst i) {
    i.guard = guard_;
    i.negate = negate_;
    i.text = text_;
    i.file = file_;
    i.line = line_;
    if (i.run == nullptr) throw std::runtime_error("not supported");
    k_.code.push_back(i);
}

void Decoder::blank() {
    const string& body = k_.body;
    while (pos_ < body.size() && isspace(static_cast<unsigned char>(body[pos_]))) ++pos_;
}

string Decoder::until(char c) {
    const string& body = k_.body;
    const size_t end = body.find(c, pos_);
    if (end == string::npos) throw std::runtime_error("unfinished statement");
    string out = body.substr(pos_, end - pos_);
    pos_ = end + 1;
    return out;
}

void Decoder::directive(const string& s) {
    if (starts(s, ".reg")) {
        declare_registers(s);
    } else if (starts(s, ".shared")) {
        const Declared d = declaration(s.substr(7));
        if (k_.uses_dynamic) throw std::runtime_error("shared array declared after the use of dynamic memory");
        add_shared(Shared{d.name, d.align, d.bytes, false});
    } else if (starts(s, ".local")) {
        const Declared d = declaration(s.substr(6));
        k_.local_bytes = static_cast<u32>(align_up(k_.local_bytes, d.align));
        locals_[d.name] = k_.local_bytes;
        k_.local_bytes += d.bytes;
    } else if (!starts(s, ".pragma")) {
        throw std::runtime_error("directive " + s);
    }
}

bool Decoder::statement() {
    const string& body = k_.body;
    blank();
    if (pos_ >= body.size()) return false;
    const char c = body[pos_];
    if (c == '{') {
        ++pos_;
        scopes_.emplace_back();
        names_.emplace_back();
        return true;
    }
    if (c == '}') {
        ++pos_;
        scopes_.pop_back();
        names_.pop_back();
        return !scopes_.empty();
    }
    if (body.compare(pos_, 4, ".loc") == 0 && isspace(static_cast<unsigned char>(body[pos_ + 4]))) {
        const string line = until('\n');
        sscanf(line.c_str(), ".loc %d %d", &file_, &line_);
        return true;
    }
    if (c == '.') {
        directive(until(';'));
        return true;
    }
    if (c == ';') {
        ++pos_;
        return true;
    }
    // a label?
    size_t end = pos_;
    while (end < body.size() && (isalnum(static_cast<unsigned char>(body[end])) || strchr("_$%", body[end]) != nullptr))
        ++end;
    if (end > pos_ && body[end] == ':' && body[end + 1] != ':') {
        labels_[body.substr(pos_, end - pos_)] = static_cast<u32>(k_.code.size());
        pos_ = end + 1;
        return true;
    }
    const string s = trim(until(';'));
    try {
        instruction(s);
    } catch (std::runtime_error& e) {
        throw std::runtime_error("instruction not supported: \"" + s + "\": " + e.what());
    }
    return true;
}

bool Decoder::opt(const char* name) {
    for (size_t i = 0; i < mods_.size(); ++i) {
        if (mods_[i] == name) {
            mods_.erase(mods_.begin() + static_cast<ptrdiff_t>(i));
            return true;
        }
    }
    return false;
}

void Decoder::no_more() {
    if (!mods_.empty()) throw std::runtime_error("qualifier ." + mods_[0]);
}

Type Decoder::last() {
    if (mods_.empty()) throw std::runtime_error("no type");
    const Type t = type_of(mods_.back());
    type_name_ = mods_.back();
    mods_.pop_back();
    return t;
}

void Decoder::instruction(const string& s) {
    size_t at = 0;
    guard_ = -1;
    negate_ = 0;
    after_.clear();
    text_ = static_cast<int>(k_.texts.size());
    string shown = s;
    std::replace(shown.begin(), shown.end(), '\t', ' ');
    k_.texts.push_back(shown);
    if (s[0] == '@') {
        at = 1;
        if (s[at] == '!') {
            negate_ = 1;
            ++at;
        }
        size_t end = at;
        while (!isspace(static_cast<unsigned char>(s[end]))) ++end;
        Reg r;
        if (!find(s.substr(at, end - at), &r) || r.bits != 1) throw std::runtime_error("guard");
        guard_ = static_cast<int>(r.offset);
        at = end;
        while (isspace(static_cast<unsigned char>(s[at]))) ++at;
    }
    size_t end = at;
    while (end < s.size() && !isspace(static_cast<unsigned char>(s[end]))) ++end;
    const string opcode = s.substr(at, end - at);
    ops_ = split_operands(s.substr(end));
    mods_.clear();
    std::istringstream in(opcode);
    string op, part;
    std::getline(in, op, '.');
    while (std::getline(in, part, '.')) mods_.push_back(part);
    dispatch(op);
    no_more();
    for (Inst i : after_) emit(i);
}

void Decoder::need(size_t n) const {
    if (ops_.size() != n) throw std::runtime_error("number of operands");
}

void Decoder::dispatch(const string& op) {
    if (op == "bra") return branch();
    if (op == "ret" || op == "exit" || op == "trap") return leave(op == "trap");
    if (op == "ld" || op == "st") return load_store(op == "ld");
    if (op == "mov") return move();
    if (op == "cvta") return convert_address();
    if (op == "cvt") return convert();
    if (op == "setp") return compare();
    if (op == "selp") return select();
    if (op == "bar" || op == "barrier") return barrier();
    if (op == "shfl") return shuffles();
    if (op == "vote") return votes();
    if (op == "cp") return copy_async();
    if (op == "ldmatrix") return matrix();
    if (op == "mma") return product();
    if (op == "membar" || op == "fence") return fence();
    arithmetic(op);
}

void decode(Kernel& kernel) {
    if (kernel.decoded) return;
    try {
        Decoder(kernel).run();
    } catch (std::exception& e) {
        kernel.error = e.what();
    }
    kernel.decoded = true;
}

}  // namespace ptx
