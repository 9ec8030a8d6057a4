// float16 and bfloat16 arithmetic, single and packed. Computed in double and rounded once.
#include <algorithm>
#include <cmath>

#include "block.h"
#include "decoder.h"
#include "numbers.h"

namespace emulator {
namespace {

using Operation = double (*)(double, double, double);

double add(double a, double b, double) { return a + b; }
double subtract(double a, double b, double) { return a - b; }
double multiply(double a, double b, double) { return a * b; }
double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }
double minimum(double a, double b, double) {
  return std::isnan(a) ? b : std::isnan(b) ? a : a < b || (a == b && std::signbit(a)) ? a : b;
}
double maximum(double a, double b, double) {
  return std::isnan(a) ? b : std::isnan(b) ? a : a > b || (a == b && std::signbit(b)) ? a : b;
}
double minimum_or_nan(double a, double b, double c) {
  return std::isnan(a) || std::isnan(b) ? NAN : minimum(a, b, c);
}
double maximum_or_nan(double a, double b, double c) {
  return std::isnan(a) || std::isnan(b) ? NAN : maximum(a, b, c);
}
double negate(double a, double, double) { return -a; }
double absolute(double a, double, double) { return std::fabs(a); }
double exp2(double a, double, double) { return std::exp2(a); }
double tangent(double a, double, double) { return std::tanh(a); }

template <bool kBFloat>
double widen(uint16_t bits) {
  return kBFloat ? bfloat_to_float(bits) : half_to_float(bits);
}
template <bool kBFloat>
uint16_t narrow(double value) {
  return kBFloat ? double_to_bfloat(value) : double_to_half(value);
}

// mode: 0, or 1 to replace negative results and NaN by 0 (.relu) or keep them in [0, 1] (2, .sat).
double bounded(double value, int mode) {
  if (mode == 0) return value;
  if (std::isnan(value)) return mode == 2 ? 0.0 : value;
  return mode == 1 ? std::max(value, 0.0) : std::clamp(value, 0.0, 1.0);
}

template <typename T, bool kBFloat, Operation kOperation>
void apply(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  T* d = row<T>(warp, i.d);
  const T* a = row<T>(warp, i.a);
  const T* b = i.b.present() ? row<T>(warp, i.b) : a;
  const T* c = i.c.present() ? row<T>(warp, i.c) : a;
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    T result = 0;
    for (size_t part = 0; part < sizeof(T) / 2; ++part) {
      const auto operand = [&](const T* from) {
        return widen<kBFloat>(static_cast<uint16_t>(from[lane] >> (16 * part)));
      };
      const double value = bounded(kOperation(operand(a), operand(b), operand(c)), i.mode);
      result |= static_cast<T>(static_cast<T>(narrow<kBFloat>(value)) << (16 * part));
    }
    d[lane] = result;
  }
}

template <Operation kOperation>
Handler handler(Type type) {
  const bool bfloat = type.kind == Type::kBFloat;
  if (type.count == 2) {
    return bfloat ? &apply<uint32_t, true, kOperation> : &apply<uint32_t, false, kOperation>;
  }
  return bfloat ? &apply<uint16_t, true, kOperation> : &apply<uint16_t, false, kOperation>;
}

struct Named {
  const char* name;
  int operands;
  Handler (*find)(Type);
};

constexpr Named kOperations[] = {
    {"add", 2, handler<add>},          {"sub", 2, handler<subtract>}, {"mul", 2, handler<multiply>},
    {"fma", 3, handler<multiply_add>}, {"min", 2, handler<minimum>},  {"max", 2, handler<maximum>},
    {"neg", 1, handler<negate>},       {"abs", 1, handler<absolute>}, {"ex2", 1, handler<exp2>},
    {"tanh", 1, handler<tangent>},
};

}  // namespace

bool decode_half(Decoder& decoder) {
  if (decoder.types.empty() || !decoder.type().is_float() || decoder.type().bits != 16)
    return false;
  const Type type = decoder.type();
  for (const Named& operation : kOperations) {
    if (decoder.name != operation.name) continue;
    decoder.allow({"rn", "approx", "relu", "sat", "NaN"});
    Instruction& out = decoder.out;
    out.run = operation.find(type);
    if (decoder.has("NaN")) {
      out.run =
          decoder.name == "min" ? handler<minimum_or_nan>(type) : handler<maximum_or_nan>(type);
    }
    out.mode = decoder.has("relu") ? 1 : decoder.has("sat") ? 2 : 0;
    out.d = decoder.destination(0, type.bytes());
    out.a = decoder.row(1, type.bytes());
    if (operation.operands > 1) out.b = decoder.row(2, type.bytes());
    if (operation.operands > 2) out.c = decoder.row(3, type.bytes());
    return true;
  }
  return false;
}

}  // namespace emulator
