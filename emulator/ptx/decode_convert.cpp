// decode_convert.cpp: conversions between types.
#include "decoder.h"
#include "lanes.h"
#include "numbers.h"

namespace ptx {

// Two floats into a pair of bf16: the first operand is the upper half.
void Decoder::pack_bf16(const Type& from) {
    const bool rn = opt("rn"), rz = opt("rz");
    need(3);
    if (from.bits != 32 || from.kind != 'f' || (!rn && !rz)) throw std::runtime_error("this packing");
    Inst i;
    i.a = src(ops_[1], 32, 'f');
    i.b = src(ops_[2], 32, 'f');
    i.d = dst(ops_[0], 32);
    i.run = rn ? BIN2(u32, float, float, static_cast<u32>(to_bf16(a)) << 16 | to_bf16(b))
               : BIN2(u32, float, float, static_cast<u32>(to_bf16_rz(a)) << 16 | to_bf16_rz(b));
    emit(i);
}

void Decoder::convert() {
    const Type from = last();
    const string from_name = type_name_;
    const Type to = last();
    const string to_name = type_name_;
    if (to_name == "bf16x2") return pack_bf16(from);
    int mode = -1;  // to whole numbers, see to_int
    if (opt("rni")) mode = 0;
    if (opt("rzi")) mode = 1;
    if (opt("rmi")) mode = 2;
    if (opt("rpi")) mode = 3;
    const bool saturate = opt("sat"), rn = opt("rn"), rz = opt("rz");
    need(2);
    const bool from_float = from.kind == 'f', to_float = to.kind == 'f';
    if (saturate && !(from_float && to_float)) throw std::runtime_error("sat");
    Inst i;
    i.a = src(ops_[1], from.bits, from_float ? 'f' : 'b');
    i.d = dst(ops_[0], to.bits, to.kind == 's');
    if (to.kind == 'h' || from.kind == 'h')
        i.run = convert_half(from_name, to_name, rn, rz);
    else if (from_float && to_float)
        i.run = convert_floats(from, to, mode, rn, saturate);
    else if (from_float)
        i.run = convert_to_whole(from, to, mode);
    else if (to_float)
        i.run = rn ? convert_from_whole(from, to) : nullptr;
    else if (from.bits != to.bits)
        i.run = convert_bits(from.bits, to.bits, from.kind == 's');
    else
        i.run = to.bits == 8    ? UN(u8, u8, a)
                : to.bits == 16 ? UN(u16, u16, a)
                : to.bits == 32 ? UN(u32, u32, a)
                                : UN(u64, u64, a);
    emit(i);
}

Run Decoder::convert_half(const string& from, const string& to, bool rn, bool rz) {
    if (to == "bf16" && from == "f32" && rn) return UN(u16, float, to_bf16(a));
    if (to == "bf16" && from == "f32" && rz) return UN(u16, float, to_bf16_rz(a));
    if (from == "bf16" && to == "f32") return UN(float, u16, from_bf16(a));
    if (from == "f16" && to == "f32") return UN(float, u16, from_f16(a));
    return nullptr;
}

Run Decoder::convert_floats(const Type& from, const Type& to, int mode, bool rn, bool saturate) {
    if (from.bits == 32 && to.bits == 32) {
        if (mode < 0) return saturate ? UN(float, float, sat(a)) : UN(float, float, a);
        if (saturate) return mode == 0 ? UN(float, float, sat(std::nearbyint(a))) : nullptr;
        return mode == 0   ? UN(float, float, cn(std::nearbyint(a)))
               : mode == 1 ? UN(float, float, cn(std::trunc(a)))
               : mode == 2 ? UN(float, float, cn(std::floor(a)))
                           : UN(float, float, cn(std::ceil(a)));
    }
    if (saturate) return nullptr;
    if (from.bits == 64 && to.bits == 32) return rn ? UN(float, double, cn(static_cast<float>(a))) : nullptr;
    if (from.bits == 32 && to.bits == 64) return UN(double, float, static_cast<double>(a));
    if (mode < 0) return nullptr;
    return mode == 0   ? UN(double, double, std::nearbyint(a))
           : mode == 1 ? UN(double, double, std::trunc(a))
           : mode == 2 ? UN(double, double, std::floor(a))
                       : UN(double, double, std::ceil(a));
}

Run Decoder::convert_to_whole(const Type& from, const Type& to, int mode) {
    if (mode < 0) return nullptr;
#define CASE(F, fb, I, kind_, ib)                             \
    if (from.bits == fb && to.kind == kind_ && to.bits == ib) \
        return mode == 0   ? UN(I, F, (to_int<I, F>(a, 0)))   \
               : mode == 1 ? UN(I, F, (to_int<I, F>(a, 1)))   \
               : mode == 2 ? UN(I, F, (to_int<I, F>(a, 2)))   \
                           : UN(I, F, (to_int<I, F>(a, 3)));
    CASE(float, 32, s32, 's', 32)
    CASE(float, 32, u32, 'u', 32)
    CASE(float, 32, s64, 's', 64)
    CASE(float, 32, u64, 'u', 64)
    CASE(double, 64, s32, 's', 32)
    CASE(double, 64, u32, 'u', 32)
    CASE(double, 64, s64, 's', 64)
    CASE(double, 64, u64, 'u', 64)
    CASE(float, 32, s16, 's', 16)
    CASE(float, 32, u16, 'u', 16)
#undef CASE
    return nullptr;
}

Run Decoder::convert_from_whole(const Type& from, const Type& to) {
#define CASE(I, kind_, ib)                     \
    if (from.kind == kind_ && from.bits == ib) \
        return to.bits == 32 ? UN(float, I, static_cast<float>(a)) : UN(double, I, static_cast<double>(a));
    CASE(s32, 's', 32)
    CASE(u32, 'u', 32)
    CASE(s64, 's', 64)
    CASE(u64, 'u', 64)
    CASE(s16, 's', 16)
    CASE(u16, 'u', 16)
    CASE(u8, 'u', 8)
    CASE(s8, 's', 8)
#undef CASE
    return nullptr;
}

}  // namespace ptx
