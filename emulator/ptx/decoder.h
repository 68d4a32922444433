// decoder.h: a kernel's text into instructions. Anything not understood throws std::runtime_error: no instruction is
// skipped or guessed.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "machine.h"
#include "text.h"

namespace ptx {

// Special registers, the first of the register file, in this order.
extern const char* const kSpecials[];
constexpr u32 kSpecialCount = 20;

// Bits of one width to another, with the sign or zeros.
Run convert_bits(u32 from, u32 to, bool sign);

class Decoder {
  public:
    explicit Decoder(Kernel& kernel) : k_(kernel), m_(*kernel.module) { top_ = kSpecialCount * 128; }
    void run();

  private:
    struct Reg {
        u32 bits, offset;
    };
    struct Registers {  // %r<36>
        u32 bits, base, count, stride;
    };

    // decoder.cpp: declarations and operands. src and dst give offsets in the register file; what is wider than an
    // instruction's type is narrowed by an instruction of its own.
    void declare_shared();
    void add_shared(const Shared& s);
    void declare_registers(const string& text);
    u32 allocate(u32 bits);
    u32 constant(u32 bits, u64 value);
    bool find(const string& name, Reg* out);
    bool symbol(const string& name, u64* address);
    bool immediate(const string& t, u64* value);
    u32 src(const string& t, u32 bits, char kind = 'b');
    u32 dst(const string& t, u32 bits, bool sign = false);
    u32 address(const string& t, s64* offset, bool* wide, u32 symbol_bits);
    void emit(Inst i);

    // decoder.cpp: statements
    void blank();
    string until(char c);
    bool statement();
    void directive(const string& s);
    void instruction(const string& s);
    void dispatch(const string& op);
    bool opt(const char* name);  // whether the qualifier is there; it is then used up
    void no_more();
    void need(size_t n) const;
    Type last();

    // decode_moves.cpp
    void load_store(bool is_load);
    void copy_async();
    void move();
    void move_vector(const Type& t);
    void convert_address();

    // decode_convert.cpp. A null result: not supported.
    void convert();
    void pack_bf16(const Type& from);
    static Run convert_half(const string& from, const string& to, bool rn, bool rz);
    static Run convert_floats(const Type& from, const Type& to, int mode, bool rn, bool saturate);
    static Run convert_to_whole(const Type& from, const Type& to, int mode);
    static Run convert_from_whole(const Type& from, const Type& to);

    // decode_warp.cpp
    void branch();
    void leave(bool traps);
    void fence();
    void barrier();
    void shuffles();
    void votes();
    void matrix();
    void product();

    // decode_compare.cpp
    void compare();
    void select();
    void predicates(const string& op);

    // decode_arithmetic.cpp
    void arithmetic(const string& op);
    void floats64(const string& op);
    void floats32(const string& op);
    Run floats32_rounded(const string& op, bool rz, bool rm) const;
    Run floats32_near(const string& op, bool approximate) const;
    u32 flushed(const string& t, bool flush);
    void multiply_wide(const string& op, const Type& t);
    void whole(const string& op, const Type& t);
    static Run whole_one(const string& op, const Type& t);  // by operands read
    static Run whole_two(const string& op, const Type& t, bool high);
    static Run whole_three(const string& op, const Type& t, bool high);
    bool fields(const string& op, const Type& t);

    Kernel& k_;
    const Module& m_;
    size_t pos_ = 0;
    u64 top_ = 0;
    u32 shared_end_ = kSharedStart;
    std::map<std::pair<u32, u64>, u32> constants_;
    std::vector<std::map<string, Registers>> scopes_;
    std::vector<std::map<string, Reg>> names_;
    std::map<string, u32> labels_;
    std::map<string, u64> locals_;
    std::vector<std::pair<size_t, string>> fixups_;
    // The instruction at hand: qualifiers not used yet, operands, and what follows it to narrow its results.
    std::vector<string> mods_, ops_;
    std::vector<Inst> after_;
    string type_name_;  // of the last type taken by last()
    int guard_ = -1, text_ = -1, file_ = 0, line_ = 0;
    u8 negate_ = 0;
};

}  // namespace ptx
