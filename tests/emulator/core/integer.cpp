// Integer arithmetic: add, sub, mul, mad, div, rem, min, max, abs, neg.
#include <algorithm>
#include <type_traits>

#include "block.h"
#include "decoder.h"

namespace emulator {
namespace {

template <typename T>
using Wrapping = std::make_unsigned_t<std::common_type_t<T, int>>;

// Overflow wraps; dividing by zero gives all ones, as the device does.
struct Add {
  template <typename T>
  static T of(T a, T b) {
    return static_cast<T>(static_cast<Wrapping<T>>(a) + static_cast<Wrapping<T>>(b));
  }
};
struct Subtract {
  template <typename T>
  static T of(T a, T b) {
    return static_cast<T>(static_cast<Wrapping<T>>(a) - static_cast<Wrapping<T>>(b));
  }
};
struct Multiply {
  template <typename T>
  static T of(T a, T b) {
    return static_cast<T>(static_cast<Wrapping<T>>(a) * static_cast<Wrapping<T>>(b));
  }
};
struct MultiplyHigh {
  template <typename T>
  static T of(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> (8 * sizeof(T)));
  }
};
struct Divide {
  template <typename T>
  static T of(T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract::of<T>(0, a);
    return static_cast<T>(a / b);
  }
};
struct Remainder {
  template <typename T>
  static T of(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct Minimum {
  template <typename T>
  static T of(T a, T b) {
    return std::min(a, b);
  }
};
struct Maximum {
  template <typename T>
  static T of(T a, T b) {
    return std::max(a, b);
  }
};
// Relu: a result below 0 becomes 0.
template <typename Operation>
struct AboveZero {
  template <typename T>
  static T of(T a, T b) {
    return std::max(Operation::of(a, b), T{0});
  }
};
struct Absolute {
  template <typename T>
  static T of(T a) {
    return a < 0 ? Subtract::of<T>(0, a) : a;
  }
};
struct Negate {
  template <typename T>
  static T of(T a) {
    return Subtract::of<T>(0, a);
  }
};

template <typename T, typename Operation>
void ternary(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  T* d = row<T>(warp, i.d);
  const T *a = row<T>(warp, i.a), *b = row<T>(warp, i.b), *c = row<T>(warp, i.c);
  for_lanes(mask, [=](int lane) {
    d[lane] = Add::of<T>(Operation::template of<T>(a[lane], b[lane]), c[lane]);
  });
}

template <typename T, typename Wide, bool kAdd>
void wide(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  Wide* d = row<Wide>(warp, i.d);
  const T *a = row<T>(warp, i.a), *b = row<T>(warp, i.b);
  const Wide* c = kAdd ? row<Wide>(warp, i.c) : nullptr;
  for_lanes(mask, [=](int lane) {
    const Wide product = static_cast<Wide>(a[lane]) * static_cast<Wide>(b[lane]);
    d[lane] = kAdd ? Add::of<Wide>(product, c[lane]) : product;
  });
}

// kernel<T, Operation>, with T from the instruction's type. Bit types count as unsigned.
#define BY_TYPE(kernel, type, ...)                                                         \
  [&]() -> Handler {                                                                       \
    const bool is_signed = (type).kind == Type::kSigned;                                   \
    switch ((type).bits) {                                                                 \
      case 16:                                                                             \
        return is_signed ? &kernel<int16_t, __VA_ARGS__> : &kernel<uint16_t, __VA_ARGS__>; \
      case 32:                                                                             \
        return is_signed ? &kernel<int32_t, __VA_ARGS__> : &kernel<uint32_t, __VA_ARGS__>; \
      case 64:                                                                             \
        return is_signed ? &kernel<int64_t, __VA_ARGS__> : &kernel<uint64_t, __VA_ARGS__>; \
    }                                                                                      \
    return nullptr;                                                                        \
  }()

template <bool kAdd>
Handler wide_handler(Type type) {
  const bool is_signed = type.kind == Type::kSigned;
  if (type.bits == 16)
    return is_signed ? &wide<int16_t, int32_t, kAdd> : &wide<uint16_t, uint32_t, kAdd>;
  if (type.bits == 32)
    return is_signed ? &wide<int32_t, int64_t, kAdd> : &wide<uint32_t, uint64_t, kAdd>;
  return nullptr;
}

bool decode_product(Decoder& decoder) {
  decoder.allow({"lo", "hi", "wide"});
  const bool add = decoder.name == "mad";
  const bool is_wide = decoder.has("wide"), high = decoder.has("hi");
  const Type type = decoder.type();
  const int bytes = type.bytes();
  Instruction& out = decoder.out;
  out.d = decoder.destination(0, is_wide ? 2 * bytes : bytes);
  out.a = decoder.row(1, bytes);
  out.b = decoder.row(2, bytes);
  if (add) out.c = decoder.row(3, is_wide ? 2 * bytes : bytes);
  if (is_wide) {
    out.run = add ? wide_handler<true>(type) : wide_handler<false>(type);
  } else if (add) {
    out.run = high ? BY_TYPE(ternary, type, MultiplyHigh) : BY_TYPE(ternary, type, Multiply);
  } else {
    out.run = high ? BY_TYPE(binary, type, MultiplyHigh) : BY_TYPE(binary, type, Multiply);
  }
  if (out.run == nullptr) decoder.unsupported("operand type");
  return true;
}

}  // namespace

bool decode_integer(Decoder& decoder) {
  if (decoder.types.empty() || decoder.type().is_float()) return false;
  const std::string_view name = decoder.name;
  const Type type = decoder.type();
  if (name == "mul" || name == "mad") return decode_product(decoder);
  Handler handler = nullptr;
  bool single = false;
  if (name == "add") handler = BY_TYPE(binary, type, Add);
  if (name == "sub") handler = BY_TYPE(binary, type, Subtract);
  if (name == "div") handler = BY_TYPE(binary, type, Divide);
  if (name == "rem") handler = BY_TYPE(binary, type, Remainder);
  if (name == "min") handler = BY_TYPE(binary, type, Minimum);
  if (name == "max") handler = BY_TYPE(binary, type, Maximum);
  if (name == "abs") handler = BY_TYPE(unary, type, Absolute), single = true;
  if (name == "neg") handler = BY_TYPE(unary, type, Negate), single = true;
  if (handler == nullptr) return false;
  decoder.allow({"relu"});
  if (decoder.has("relu")) {
    if (type != Type{Type::kSigned, 32} || (name != "min" && name != "max")) {
      decoder.unsupported("modifier .relu");
    }
    handler =
        name == "min" ? binary<int32_t, AboveZero<Minimum>> : binary<int32_t, AboveZero<Maximum>>;
  }
  decoder.out.d = decoder.destination(0, type.bytes());
  decoder.out.a = decoder.row(1, type.bytes());
  if (!single) decoder.out.b = decoder.row(2, type.bytes());
  decoder.out.run = handler;
  return true;
}

}  // namespace emulator
