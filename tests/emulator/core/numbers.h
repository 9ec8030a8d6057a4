// Number formats of the device that the host has not: float16, bfloat16, tf32, and rounding to
// them.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace emulator {

enum class Rounding : uint8_t { kNearest, kZero, kDown, kUp };

inline float to_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t to_bits(float value) { return std::bit_cast<uint32_t>(value); }
inline double to_double(uint64_t bits) { return std::bit_cast<double>(bits); }
inline uint64_t to_bits(double value) { return std::bit_cast<uint64_t>(value); }

// The neighbour of `value` rounded towards zero, its last bit set if that is not exact: rounding it
// again to fewer digits then gives what rounding `value` at once would.
inline float to_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || std::isnan(value)) return nearest;
  uint32_t bits = to_bits(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(value)) --bits;
  return to_float(bits | 1);
}

// float32, the rounding given, from a double.
inline float round_to_float(double value, Rounding rounding) {
  const float nearest = static_cast<float>(value);
  if (rounding == Rounding::kNearest || static_cast<double>(nearest) == value) return nearest;
  const bool above = static_cast<double>(nearest) > value;
  if (std::isnan(value)) return nearest;
  const bool wants_below =
      rounding == Rounding::kDown || (rounding == Rounding::kZero && value > 0);
  if (above == wants_below) return std::nextafter(nearest, above ? -INFINITY : INFINITY);
  return nearest;
}

inline float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }
inline float bfloat_to_float(uint16_t bits) { return to_float(static_cast<uint32_t>(bits) << 16); }

inline uint16_t float_to_half(float value, Rounding rounding = Rounding::kNearest) {
  if (std::isnan(value)) return 0x7fff;
  return rounding == Rounding::kZero ? _cvtss_sh(value, 3) : _cvtss_sh(value, 0);
}
inline uint16_t double_to_half(double value) { return float_to_half(to_odd(value)); }

inline uint16_t float_to_bfloat(float value, Rounding rounding = Rounding::kNearest) {
  if (std::isnan(value)) return 0x7fff;
  uint32_t bits = to_bits(value);
  if (rounding == Rounding::kNearest && !std::isinf(value)) bits += 0x7fff + ((bits >> 16) & 1);
  return static_cast<uint16_t>(bits >> 16);
}
inline uint16_t double_to_bfloat(double value) { return float_to_bfloat(to_odd(value)); }

// Ten explicit digits: to nearest, ties away from zero (.rna) or to even (.rn).
inline uint32_t float_to_tf32(float value, bool ties_away) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7f800000) == 0x7f800000) return bits;
  const uint32_t half = ties_away ? 0x1000 : 0xfff + ((bits >> 13) & 1);
  return (bits + half) & 0xffffe000;
}
inline float tf32_to_float(uint32_t bits) { return to_float(bits & 0xffffe000); }

inline float flush(float value) {
  return (to_bits(value) & 0x7f800000) ? value : std::copysign(0.0f, value);
}

}  // namespace emulator
