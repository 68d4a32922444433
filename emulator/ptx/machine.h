// machine.h: what a kernel in PTX is here, decoded, and the state of the block and the warps that run it.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../launch.h"

namespace ptx {

using std::string;
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef unsigned __int128 u128;
typedef __int128 s128;

constexpr u32 kAll = 0xffffffffu;
// Generic addresses of the spaces that are not global memory. No allocation lies there.
constexpr u64 kParamBase = u64{1} << 60, kLocalBase = u64{1} << 61, kSharedBase = u64{1} << 62;
// Shared memory of a block: from kSharedStart on the static arrays, each with a gap behind it, then the dynamic part.
// Offset 0 is nobody's.
constexpr u32 kSharedStart = 1024, kGap = 1024;

template <class To, class From> inline To bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To out;
    memcpy(&out, &v, sizeof(out));
    return out;
}

// A fault of a kernel, with the driver's error code. It ends the launch.
struct Fault {
    int code;
    string text;
};
[[noreturn]] void fault(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---------------------------------------------------------------------------------------------- code

struct Warp;
struct Inst;
using Run = void (*)(Warp&, const Inst&);

// How an instruction moves through the code: kSync waits for lanes of the warp, kBarrier for the warps of the block.
enum class Kind : u8 { kPlain, kBranch, kExit, kSync, kBarrier };

// One instruction. Operands are offsets into the warp's register file; what `flag`, `count` and `imm` mean is said at
// `run`.
struct Inst {
    Run run = nullptr;
    Kind kind = Kind::kPlain;
    u8 negate = 0;  // of the guard
    u8 count = 1;   // elements of a vector, matrices, bytes of a copy
    u8 flag = 0;
    int guard = -1;  // a predicate, or none
    u32 d = 0, a = 0, b = 0, c = 0, e = 0, f = 0;
    u32 v[10] = {};  // elements of vectors
    s64 imm = 0;
    u32 target = 0;  // of a branch; for kSync: whether `f` holds the members' mask
    int text = -1;   // in Kernel::texts
    int file = 0, line = 0;
};

struct Shared {  // a shared array as declared
    string name;
    u32 align, bytes;
    bool dynamic;
};

struct Module {  // one .ptx file
    string path;
    std::map<int, string> files;
    std::map<string, Shared> shared;
};

struct Kernel {
    string name, body;
    string error;  // why it could not be decoded
    u32 params_bytes = 0, params = 0, threads = 0, min_blocks = 0;
    std::vector<Inst> code;
    std::vector<string> texts;
    u32 regs_bytes = 0;
    std::vector<u8> initial;                       // register file at the start: constants, the rest all ones
    std::map<string, std::pair<u32, u32>> shared;  // static arrays: offset in the block's shared memory, bytes
    u32 static_bytes = 0;                          // from kSharedStart to the dynamic part, gaps included
    u32 static_plain = 0;                          // without gaps, as ptxas counts
    u32 local_bytes = 0;
    bool uses_dynamic = false, decoded = false;
    const Module* module = nullptr;
    std::vector<u8> hit;            // instructions that ran
    mutable std::vector<u8> zeros;  // cp.async that filled with zeros
    std::atomic<u64> blocks{0}, executed{0}, launches{0}, max_dynamic{0};
    mutable std::atomic<u64> filled{0};  // bytes that EMU_PTX_FILL made NaN

    // Source file and line of an instruction, for messages.
    string place(const Inst& i) const;
    string text_of(const Inst& i) const { return i.text >= 0 ? texts[static_cast<size_t>(i.text)] : "?"; }
};

// ---------------------------------------------------------------------------------------------- state

// Lanes of a warp that stand at the same place while others run.
struct Group {
    u32 pc, mask;
    bool waiting;  // at a warp operation or a barrier, for the others
};

struct Copy {  // a cp.async: `valid` bytes come from memory, the rest are `fill`, 0 but for EMU_PTX_FILL
    u32 to;
    u64 from;
    u32 bytes, valid;
    u8 fill;
};
struct AsyncLane {
    std::vector<Copy> copies;   // not waited for, oldest first
    std::deque<size_t> groups;  // committed: number of copies
    size_t uncommitted = 0;
};

struct Range {
    u64 low, high;
};

enum Shadow : u8 { kFresh = 0, kWritten = 1, kPending = 2, kOutside = 3 };

struct Block {
    const Kernel* kernel = nullptr;
    std::vector<u8> shared, shadow;  // a byte of `shadow` (Shadow) for each of `shared`
    u32 shared_top = 0;
    std::vector<u8> params;
    std::vector<Range> ranges;  // allocations seen in this launch, the latest first
    u64 launch = 0;             // number of the launch
};

struct Warp {
    u8* regs;
    u32 m;  // lanes that the instruction at hand is for
    Block* block;
    const Kernel* kernel;
    u32 index;
    u32 pc, mask, live;
    std::vector<Group> others;
    bool at_barrier, done;
    s64 barrier_id;
    u64 steps;
    AsyncLane async[32];
    u8* local;
};

// A warning: the kernel goes on, the run counts as bad. Each text once.
void warn(const Warp& w, const Inst& i, const char* what);

// ---------------------------------------------------------------------------------------------- options, from the
// environment

struct Options {
    string folder;  // EMU_PTX: where the .ptx files are; empty: kernels run as compiled for the host
    string report;  // EMU_PTX_REPORT: file to which the kernels that ran, warnings and faults are added
    int solo = 0;   // EMU_PTX_SOLO: lanes run one by one between warp operations: 1 ascending, 2 descending, 3 mixed
    bool mma_truncates = false;  // EMU_PTX_MMA=truncate: sums as tensor cores are known to cut them
    int approx_ulps = 0;         // EMU_PTX_APPROX: approximations are off by up to so many units in the last place
    bool lines = false;  // EMU_PTX_LINES: the report names instructions that ran, source lines reached and missed
    string fill_kernel;  // EMU_PTX_FILL=kernel:number: that cp.async fills with NaN (0xff) in the place of zeros
    int fill_text = -1;
};
const Options& options();

// ---------------------------------------------------------------------------------------------- operations, one file
// each

enum class Space : u8 { kGlobal, kShared, kParam, kLocal, kGeneric };

// memory_access.cpp. a: address, of 32 bits unless `wide`; imm: offset; v: `count` values of `size` bytes.
Run load_run(Space space, u32 size, bool wide);
Run store_run(Space space, u32 size, bool wide);
void cp_async(Warp& w, const Inst& i);  // a: to, imm: offset; b: from, target: offset; c: valid bytes; count: bytes
void cp_async_commit(Warp& w, const Inst& i);
void cp_async_wait(Warp& w, const Inst& i);  // imm: groups that may be pending; flag: wait for everything
const u8* shared_read(Warp& w, const Inst& i, u64 at, u32 bytes);
void check_aligned(u64 at, u32 bytes);

// warp_ops.cpp
void ldmatrix(Warp& w, const Inst& i);  // a: row addresses, imm: offset; count: matrices in v; flag: transposed
void mma16816(Warp& w, const Inst& i);  // a b c d: A; e f: B; v[0..4]: D, v[4..8]: C
void shuffle(Warp& w,
             const Inst& i);  // flag: 0 up, 1 down, 2 bfly, 3 idx; a: value, b: lane, c: clamp; e: predicate if imm
void vote(Warp& w, const Inst& i);  // flag: 0 ballot, 1 any, 2 all, 3 uni; a: predicate, negated if imm

// decoder.cpp: fills a kernel from its body, or leaves why not in `error`.
void decode(Kernel& kernel);

}  // namespace ptx
