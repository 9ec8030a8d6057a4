// float32 and float64 arithmetic. Approximate instructions (.approx, .full) give the correctly
// rounded result, or that of the host's library: within the device's error, not its bits.
#include <algorithm>
#include <cmath>

#include "block.h"
#include "decoder.h"
#include "numbers.h"

namespace emulator {
namespace {

struct Add {
  template <typename T>
  static T of(T a, T b, T) {
    return a + b;
  }
};
struct Subtract {
  template <typename T>
  static T of(T a, T b, T) {
    return a - b;
  }
};
struct Multiply {
  template <typename T>
  static T of(T a, T b, T) {
    return a * b;
  }
};
struct Divide {
  template <typename T>
  static T of(T a, T b, T) {
    return a / b;
  }
};
struct MultiplyAdd {
  static float of(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static double of(double a, double b, double c) { return __builtin_fma(a, b, c); }
};
// A NaN beside a number is ignored, unless .NaN is asked for; -0 is below +0.
struct Minimum {
  template <typename T>
  static T of(T a, T b, T) {
    return std::isnan(a) ? b : std::isnan(b) ? a : a < b ? a : b < a ? b : std::signbit(a) ? a : b;
  }
};
struct Maximum {
  template <typename T>
  static T of(T a, T b, T) {
    return std::isnan(a) ? b : std::isnan(b) ? a : a > b ? a : b > a ? b : std::signbit(a) ? b : a;
  }
};
template <typename Operation>
struct OrNan {
  template <typename T>
  static T of(T a, T b, T c) {
    return std::isnan(a) || std::isnan(b) ? T(NAN) : Operation::of(a, b, c);
  }
};
struct CopySign {  // the sign of a, the rest of b
  template <typename T>
  static T of(T a, T b, T) {
    return std::copysign(b, a);
  }
};
struct Absolute {
  template <typename T>
  static T of(T a, T, T) {
    return std::fabs(a);
  }
};
struct Negate {
  template <typename T>
  static T of(T a, T, T) {
    return -a;
  }
};
struct Reciprocal {
  template <typename T>
  static T of(T a, T, T) {
    return T(1) / a;
  }
};
struct SquareRoot {
  template <typename T>
  static T of(T a, T, T) {
    return std::sqrt(a);
  }
};
struct ReciprocalSquareRoot {
  static float of(float a, float, float) {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a)));
  }
  static double of(double a, double, double) { return 1.0 / std::sqrt(a); }
};
struct Exp2 {
  template <typename T>
  static T of(T a, T, T) {
    return std::exp2(a);
  }
};
struct Log2 {
  template <typename T>
  static T of(T a, T, T) {
    return std::log2(a);
  }
};
struct Sine {
  template <typename T>
  static T of(T a, T, T) {
    return std::sin(a);
  }
};
struct Cosine {
  template <typename T>
  static T of(T a, T, T) {
    return std::cos(a);
  }
};
struct HyperbolicTangent {
  template <typename T>
  static T of(T a, T, T) {
    return std::tanh(a);
  }
};

// Subnormal operands and results are zero (.ftz); results are cut to [0, 1] and NaN is 0 (.sat).
template <typename T, typename Operation, int kOperands, bool kFlush, bool kSaturate>
void apply(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  T* d = row<T>(warp, i.d);
  const T* a = row<T>(warp, i.a);
  const T* b = kOperands > 1 ? row<T>(warp, i.b) : a;
  const T* c = kOperands > 2 ? row<T>(warp, i.c) : a;
  for_lanes(mask, [=](int lane) {
    T x = a[lane], y = b[lane], z = c[lane];
    if constexpr (kFlush) x = flush(x), y = flush(y), z = flush(z);
    T result = Operation::of(x, y, z);
    if constexpr (kFlush) result = flush(result);
    if constexpr (kSaturate) result = std::isnan(result) ? 0 : std::clamp<T>(result, 0, 1);
    d[lane] = result;
  });
}

template <typename Operation, int kOperands>
Handler handler(Decoder& decoder) {
  const bool flushes = decoder.has("ftz"), saturates = decoder.has("sat");
  const Type type = decoder.type();
  if (type.bits == 64 && type.count == 1) return &apply<double, Operation, kOperands, false, false>;
  if (type.bits != 32 || type.count != 1) return nullptr;
  if (flushes && saturates) return &apply<float, Operation, kOperands, true, true>;
  if (flushes) return &apply<float, Operation, kOperands, true, false>;
  if (saturates) return &apply<float, Operation, kOperands, false, true>;
  return &apply<float, Operation, kOperands, false, false>;
}

struct Named {
  const char* name;
  int operands;
  Handler (*find)(Decoder&);
};

constexpr Named kOperations[] = {
    {"add", 2, handler<Add, 2>},
    {"sub", 2, handler<Subtract, 2>},
    {"mul", 2, handler<Multiply, 2>},
    {"div", 2, handler<Divide, 2>},
    {"fma", 3, handler<MultiplyAdd, 3>},
    {"mad", 3, handler<MultiplyAdd, 3>},
    {"min", 2, handler<Minimum, 2>},
    {"max", 2, handler<Maximum, 2>},
    {"copysign", 2, handler<CopySign, 2>},
    {"abs", 1, handler<Absolute, 1>},
    {"neg", 1, handler<Negate, 1>},
    {"rcp", 1, handler<Reciprocal, 1>},
    {"sqrt", 1, handler<SquareRoot, 1>},
    {"rsqrt", 1, handler<ReciprocalSquareRoot, 1>},
    {"ex2", 1, handler<Exp2, 1>},
    {"lg2", 1, handler<Log2, 1>},
    {"sin", 1, handler<Sine, 1>},
    {"cos", 1, handler<Cosine, 1>},
    {"tanh", 1, handler<HyperbolicTangent, 1>},
};

}  // namespace

bool decode_float(Decoder& decoder) {
  if (decoder.types.empty() || decoder.type().kind != Type::kFloat) return false;
  const Type type = decoder.type();
  if (type.bits < 32) return false;
  for (const Named& operation : kOperations) {
    if (decoder.name != operation.name) continue;
    decoder.allow({"rn", "approx", "full", "ftz", "sat", "NaN"});
    Instruction& out = decoder.out;
    const int bytes = type.bytes();
    out.run = operation.find(decoder);
    if (decoder.has("NaN")) {
      out.run = decoder.name == "min" ? handler<OrNan<Minimum>, 2>(decoder)
                                      : handler<OrNan<Maximum>, 2>(decoder);
    }
    if (out.run == nullptr) decoder.unsupported("operand type");
    if (decoder.operands.size() != static_cast<size_t>(operation.operands) + 1) {
      decoder.unsupported("number of operands");
    }
    out.d = decoder.destination(0, bytes);
    out.a = decoder.row(1, bytes);
    if (operation.operands > 1) out.b = decoder.row(2, bytes);
    if (operation.operands > 2) out.c = decoder.row(3, bytes);
    return true;
  }
  return false;
}

}  // namespace emulator
