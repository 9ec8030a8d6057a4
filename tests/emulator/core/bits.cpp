// Logic, shifts, bit fields, permutations, and mov with its packing of vectors.
#include <algorithm>
#include <type_traits>

#include "block.h"
#include "decoder.h"

namespace emulator {
namespace {

struct And {
  template <typename T>
  static T of(T a, T b) {
    return a & b;
  }
};
struct Or {
  template <typename T>
  static T of(T a, T b) {
    return a | b;
  }
};
struct Xor {
  template <typename T>
  static T of(T a, T b) {
    return a ^ b;
  }
};
struct Not {
  template <typename T>
  static T of(T a) {
    return static_cast<T>(~a);
  }
};
struct LogicalNot {
  template <typename T>
  static T of(T a) {
    return a == 0;
  }
};
struct Copy {
  template <typename T>
  static T of(T a) {
    return a;
  }
};
struct Reverse {
  template <typename T>
  static T of(T a) {
    T result = 0;
    for (size_t bit = 0; bit < 8 * sizeof(T); ++bit) {
      result |= static_cast<T>(a >> bit & 1) << (8 * sizeof(T) - 1 - bit);
    }
    return result;
  }
};
// Shifts beyond the width clear, or copy the sign.
struct ShiftLeft {
  template <typename T>
  static T of(T a, uint32_t by) {
    return by >= 8 * sizeof(T) ? T(0) : static_cast<T>(a << by);
  }
};
struct ShiftRight {
  template <typename T>
  static T of(T a, uint32_t by) {
    constexpr uint32_t kBits = 8 * sizeof(T);
    if (by < kBits) return static_cast<T>(a >> by);
    return std::is_signed_v<T> ? static_cast<T>(a >> (kBits - 1)) : T(0);
  }
};

template <typename T, typename Operation>
void shift(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  T* d = row<T>(warp, i.d);
  const T* a = row<T>(warp, i.a);
  const uint32_t* by = row<uint32_t>(warp, i.b);
  for_lanes(mask, [=](int lane) { d[lane] = Operation::template of<T>(a[lane], by[lane]); });
}

template <typename Operation>
void predicates(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t b = i.b.present() ? predicate(warp, i.b) : 0;
  set_predicate(warp, i.d, mask, Operation::template of<uint32_t>(predicate(warp, i.a), b));
}

struct First {
  template <typename T>
  static T of(T a, T) {
    return a;
  }
};
struct Inverse {
  template <typename T>
  static T of(T a, T) {
    return ~a;
  }
};

void funnel_shift(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  uint32_t* d = row<uint32_t>(warp, i.d);
  const uint32_t *low = row<uint32_t>(warp, i.a), *high = row<uint32_t>(warp, i.b);
  const uint32_t* by = row<uint32_t>(warp, i.c);
  const bool left = i.mode & 1, wraps = i.mode & 2;
  for_lanes(mask, [=](int lane) {
    const uint64_t both = static_cast<uint64_t>(high[lane]) << 32 | low[lane];
    const uint32_t n = wraps ? by[lane] & 31 : std::min(by[lane], 32u);
    d[lane] = static_cast<uint32_t>(left ? both << n >> 32 : both >> n);
  });
}

void lookup(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  uint32_t* d = row<uint32_t>(warp, i.d);
  const uint32_t *a = row<uint32_t>(warp, i.a), *b = row<uint32_t>(warp, i.b);
  const uint32_t* c = row<uint32_t>(warp, i.c);
  const uint32_t table = row<uint32_t>(warp, i.e)[0];
  for_lanes(mask, [=](int lane) {
    uint32_t result = 0;
    for (uint32_t entry = 0; entry < 8; ++entry) {
      if (!(table >> entry & 1)) continue;
      result |= (entry & 4 ? a[lane] : ~a[lane]) & (entry & 2 ? b[lane] : ~b[lane]) &
                (entry & 1 ? c[lane] : ~c[lane]);
    }
    d[lane] = result;
  });
}

void permute(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  uint32_t* d = row<uint32_t>(warp, i.d);
  const uint32_t *a = row<uint32_t>(warp, i.a), *b = row<uint32_t>(warp, i.b);
  const uint32_t* selector = row<uint32_t>(warp, i.c);
  for_lanes(mask, [=](int lane) {
    const uint64_t bytes = static_cast<uint64_t>(b[lane]) << 32 | a[lane];
    uint32_t result = 0;
    for (int at = 0; at < 4; ++at) {
      const uint32_t pick = selector[lane] >> (4 * at) & 15;
      uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (pick & 7))) & 255;
      if (pick & 8) byte = byte & 128 ? 255 : 0;  // its sign, spread
      result |= byte << (8 * at);
    }
    d[lane] = result;
  });
}

template <typename T>
void extract(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  T* d = row<T>(warp, i.d);
  const T* a = row<T>(warp, i.a);
  const uint32_t *at = row<uint32_t>(warp, i.b), *length = row<uint32_t>(warp, i.c);
  constexpr uint32_t kBits = 8 * sizeof(T);
  for_lanes(mask, [=](int lane) {
    const uint32_t position = at[lane] & 255, count = length[lane] & 255;
    using U = std::make_unsigned_t<T>;
    U result = 0;
    const uint32_t top = std::min(position + count - 1, kBits - 1);
    const bool sign = std::is_signed_v<T> && count > 0 && (static_cast<U>(a[lane]) >> top & 1);
    for (uint32_t bit = 0; bit < kBits; ++bit) {
      const bool inside = bit < count && position + bit < kBits;
      const bool set = inside ? static_cast<U>(a[lane]) >> (position + bit) & 1 : sign;
      result |= static_cast<U>(set) << bit;
    }
    d[lane] = static_cast<T>(result);
  });
}

template <typename T>
void insert(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  T* d = row<T>(warp, i.d);
  const T *a = row<T>(warp, i.a), *b = row<T>(warp, i.b);
  const uint32_t *at = row<uint32_t>(warp, i.c), *length = row<uint32_t>(warp, i.e);
  for_lanes(mask, [=](int lane) {
    const uint32_t position = at[lane] & 255, count = length[lane] & 255;
    T result = b[lane];
    for (uint32_t bit = 0; bit < count && position + bit < 8 * sizeof(T); ++bit) {
      const T place = T(1) << (position + bit);
      result = (result & ~place) | (a[lane] >> bit & 1 ? place : 0);
    }
    d[lane] = result;
  });
}

// mode: 0 population count, 1 leading zeros, 2 highest bit that differs from the sign.
template <typename T>
void count_bits(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  uint32_t* d = row<uint32_t>(warp, i.d);
  const T* a = row<T>(warp, i.a);
  using U = std::make_unsigned_t<T>;
  for_lanes(mask, [=](int lane) {
    U value = static_cast<U>(a[lane]);
    if (i.mode == 2 && a[lane] < 0) value = ~value;
    const int zeros = value == 0 ? 8 * sizeof(T) : __builtin_clzll(value) - (64 - 8 * sizeof(T));
    const int highest = static_cast<int>(8 * sizeof(T)) - 1 - zeros;
    d[lane] = static_cast<uint32_t>(i.mode == 0   ? __builtin_popcountll(value)
                                    : i.mode == 1 ? zeros
                                                  : highest);
  });
}

void pack(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  const int bits = i.type.bits / static_cast<int>(i.vector.size());
  for_lanes(mask, [&](int lane) {
    uint64_t value = 0;
    for (size_t k = 0; k < i.vector.size(); ++k) {
      value |= lane_value(warp, i.vector[k], lane) << (bits * k);
    }
    set_lane(warp, i.d, lane, value);
  });
}

void unpack(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  const int bits = i.type.bits / static_cast<int>(i.vector.size());
  for_lanes(mask, [&](int lane) {
    const uint64_t value = lane_value(warp, i.a, lane);
    for (size_t k = 0; k < i.vector.size(); ++k) {
      set_lane(warp, i.vector[k], lane, value >> (bits * k));
    }
  });
}

#define UNSIGNED(kernel, bits, ...)                                        \
  ((bits) == 16   ? static_cast<Handler>(&kernel<uint16_t, ##__VA_ARGS__>) \
   : (bits) == 32 ? static_cast<Handler>(&kernel<uint32_t, ##__VA_ARGS__>) \
   : (bits) == 64 ? static_cast<Handler>(&kernel<uint64_t, ##__VA_ARGS__>) \
                  : nullptr)
#define SIGNED(kernel, bits, ...)                                         \
  ((bits) == 16   ? static_cast<Handler>(&kernel<int16_t, ##__VA_ARGS__>) \
   : (bits) == 32 ? static_cast<Handler>(&kernel<int32_t, ##__VA_ARGS__>) \
   : (bits) == 64 ? static_cast<Handler>(&kernel<int64_t, ##__VA_ARGS__>) \
                  : nullptr)

bool decode_mov(Decoder& decoder) {
  decoder.allow({});
  Instruction& out = decoder.out;
  const Type type = decoder.type();
  if (type.kind == Type::kPredicate) {
    out.d = decoder.predicate(0);
    out.a = decoder.predicate(1);
    out.run = &predicates<First>;
    return true;
  }
  if (decoder.operands.at(0).front() == '{') {
    out.vector = decoder.elements(0, 0);
    out.a = decoder.row(1, type.bytes());
    out.run = &unpack;
  } else if (decoder.operands.at(1).front() == '{') {
    out.d = decoder.destination(0, type.bytes());
    const int count =
        static_cast<int>(std::count(decoder.operands[1].begin(), decoder.operands[1].end(), ',')) +
        1;
    out.vector = decoder.elements(1, std::max(2, type.bytes() / count));
    out.run = &pack;
  } else {
    out.d = decoder.destination(0, type.bytes());
    out.a = decoder.row(1, type.bytes());
    out.run = UNSIGNED(unary, type.bits * type.count, Copy);
  }
  if (out.run == nullptr) decoder.unsupported("operand type");
  return true;
}

bool decode_predicates(Decoder& decoder) {
  Instruction& out = decoder.out;
  const std::string_view name = decoder.name;
  out.run = name == "and"   ? &predicates<And>
            : name == "or"  ? &predicates<Or>
            : name == "xor" ? &predicates<Xor>
            : name == "not" ? &predicates<Inverse>
                            : nullptr;
  if (out.run == nullptr) return false;
  out.d = decoder.predicate(0);
  out.a = decoder.predicate(1);
  if (name != "not") out.b = decoder.predicate(2);
  return true;
}

bool decode_field(Decoder& decoder) {
  Instruction& out = decoder.out;
  const std::string_view name = decoder.name;
  const int bits = decoder.type().bits;
  const bool is_signed = decoder.type().kind == Type::kSigned;
  if (name == "popc" || name == "clz" || name == "bfind") {
    decoder.allow({});
    out.mode = name == "popc" ? 0 : name == "clz" ? 1 : 2;
    out.run = is_signed ? SIGNED(count_bits, bits) : UNSIGNED(count_bits, bits);
    out.d = decoder.destination(0, 4);
    out.a = decoder.row(1, bits / 8);
  } else if (name == "bfe") {
    out.run = is_signed ? SIGNED(extract, bits) : UNSIGNED(extract, bits);
    out.d = decoder.destination(0, bits / 8);
    out.a = decoder.row(1, bits / 8);
    out.b = decoder.row(2, 4);
    out.c = decoder.row(3, 4);
  } else if (name == "bfi") {
    out.run = UNSIGNED(insert, bits);
    out.d = decoder.destination(0, bits / 8);
    out.a = decoder.row(1, bits / 8);
    out.b = decoder.row(2, bits / 8);
    out.c = decoder.row(3, 4);
    out.e = decoder.row(4, 4);
  } else {
    return false;
  }
  return true;
}

bool decode_three_words(Decoder& decoder) {
  Instruction& out = decoder.out;
  if (decoder.name == "shf") {
    decoder.allow({"l", "r", "wrap", "clamp"});
    out.mode = (decoder.has("l") ? 1 : 0) | (decoder.has("wrap") ? 2 : 0);
    out.run = &funnel_shift;
  } else if (decoder.name == "lop3") {
    decoder.allow({});
    out.run = &lookup;
    out.e = decoder.row(4, 4);
  } else if (decoder.name == "prmt") {
    decoder.allow({});
    out.run = &permute;
  } else {
    return false;
  }
  out.d = decoder.destination(0, 4);
  out.a = decoder.row(1, 4);
  out.b = decoder.row(2, 4);
  out.c = decoder.row(3, 4);
  return true;
}

}  // namespace

bool decode_bits(Decoder& decoder) {
  if (decoder.types.empty()) return false;
  const std::string_view name = decoder.name;
  const Type type = decoder.type();
  if (name == "mov") return !decoder.operands.back().starts_with("%clock") && decode_mov(decoder);
  if (type.kind == Type::kPredicate) return decode_predicates(decoder);
  if (decode_three_words(decoder) || decode_field(decoder)) return true;
  Instruction& out = decoder.out;
  const int bits = type.bits;
  const bool shifts = name == "shl" || name == "shr",
             single = name == "not" || name == "cnot" || name == "brev";
  if (name == "and") out.run = UNSIGNED(binary, bits, And);
  if (name == "or") out.run = UNSIGNED(binary, bits, Or);
  if (name == "xor") out.run = UNSIGNED(binary, bits, Xor);
  if (name == "not") out.run = UNSIGNED(unary, bits, Not);
  if (name == "cnot") out.run = UNSIGNED(unary, bits, LogicalNot);
  if (name == "brev") out.run = UNSIGNED(unary, bits, Reverse);
  if (name == "shl") out.run = UNSIGNED(shift, bits, ShiftLeft);
  if (name == "shr") {
    out.run = type.kind == Type::kSigned ? SIGNED(shift, bits, ShiftRight)
                                         : UNSIGNED(shift, bits, ShiftRight);
  }
  if (out.run == nullptr) return false;
  decoder.allow({});
  out.d = decoder.destination(0, type.bytes());
  out.a = decoder.row(1, type.bytes());
  if (!single) out.b = decoder.row(2, shifts ? 4 : type.bytes());
  return true;
}

}  // namespace emulator
