// The verbs of simd.h without any instruction-set flag: short loops over 16 bytes, which the
// compiler turns into what every CPU of the target has. fma rounds twice here.
#pragma once

#include "common/dtype.h"

#define BIGKERNELS_ISA_NAMESPACE scalar

namespace bigkernels::scalar {
namespace {

// kCount lanes of S, computed one by one: f(l) is the value of lane l.
template <class V, class F>
inline V lanes_of(const F& f) {
  V result;
  for (int l = 0; l < V::kLanes; ++l) result.v[l] = f(l);
  return result;
}

template <int kCount>
struct MaskOf {
  static constexpr int kLanes = kCount;
  bool v[kCount];
  static MaskOf first(int64_t count) {
    return lanes_of<MaskOf>([&](int l) { return l < count; });
  }
};
using Mask = MaskOf<4>;
using MaskD = MaskOf<2>;
template <int kCount>
inline MaskOf<kCount> operator&(MaskOf<kCount> a, MaskOf<kCount> b) {
  return lanes_of<MaskOf<kCount>>([&](int l) { return a.v[l] && b.v[l]; });
}
template <int kCount>
inline MaskOf<kCount> operator|(MaskOf<kCount> a, MaskOf<kCount> b) {
  return lanes_of<MaskOf<kCount>>([&](int l) { return a.v[l] || b.v[l]; });
}
template <int kCount>
inline MaskOf<kCount> operator~(MaskOf<kCount> a) {
  return lanes_of<MaskOf<kCount>>([&](int l) { return !a.v[l]; });
}
template <int kCount>
inline bool any(MaskOf<kCount> a) {
  bool result = false;
  for (int l = 0; l < kCount; ++l) result = result || a.v[l];
  return result;
}
template <int kCount>
inline bool all(MaskOf<kCount> a) {
  return !any(~a);
}

// Lane l is on where byte l is not 0.
inline Mask load_mask(const uint8_t* p, int64_t count) {
  return lanes_of<Mask>([&](int l) { return l < count && p[l] != 0; });
}

struct Vec {
  using Scalar = float;
  using Mask = scalar::Mask;
  static constexpr int kLanes = 4;
  float v[kLanes];

  static Vec zero() { return broadcast(0.0f); }
  static Vec broadcast(float value) {
    return lanes_of<Vec>([&](int) { return value; });
  }
  static Vec load(const int8_t* p) {
    return lanes_of<Vec>([&](int l) { return static_cast<float>(p[l]); });
  }
  template <class T>
  static Vec load(const T* p) {
    return lanes_of<Vec>([&](int l) { return bigkernels::to_float(p[l]); });
  }
  template <class T>
  static Vec load(const T* p, int64_t count) {
    return lanes_of<Vec>([&](int l) { return l < count ? bigkernels::to_float(p[l]) : 0.0f; });
  }
};

struct VecD {
  using Scalar = double;
  using Mask = MaskD;
  static constexpr int kLanes = 2;
  double v[kLanes];

  static VecD zero() { return broadcast(0.0); }
  static VecD broadcast(double value) {
    return lanes_of<VecD>([&](int) { return value; });
  }
  template <class T>
  static VecD load(const T* p) {
    return lanes_of<VecD>([&](int l) { return static_cast<double>(p[l]); });
  }
  template <class T>
  static VecD load(const T* p, int64_t count) {
    return lanes_of<VecD>([&](int l) { return l < count ? static_cast<double>(p[l]) : 0.0; });
  }
};

// V stands for Vec and VecD alike; the names of the house keep other types away.
template <class V>
using ScalarOf = typename V::Scalar;
template <class V>
using MaskFor = typename V::Mask;

template <class T>
inline void store(T* p, Vec a, int64_t count = Vec::kLanes) {
  for (int64_t l = 0; l < count; ++l) from_float(a.v[l], p + l);
}
inline void store(double* p, VecD a, int64_t count = VecD::kLanes) {
  for (int64_t l = 0; l < count; ++l) p[l] = a.v[l];
}
inline void store(float* p, VecD a, int64_t count = VecD::kLanes) {
  for (int64_t l = 0; l < count; ++l) p[l] = static_cast<float>(a.v[l]);
}

template <class V, class S = ScalarOf<V>>
inline V operator+(V a, V b) {
  return lanes_of<V>([&](int l) { return a.v[l] + b.v[l]; });
}
template <class V, class S = ScalarOf<V>>
inline V operator-(V a, V b) {
  return lanes_of<V>([&](int l) { return a.v[l] - b.v[l]; });
}
template <class V, class S = ScalarOf<V>>
inline V operator*(V a, V b) {
  return lanes_of<V>([&](int l) { return a.v[l] * b.v[l]; });
}
template <class V, class S = ScalarOf<V>>
inline V operator/(V a, V b) {
  return lanes_of<V>([&](int l) { return a.v[l] / b.v[l]; });
}
template <class V, class S = ScalarOf<V>>
inline V fma(V a, V b, V c) {
  return a * b + c;
}
template <class V, class S = ScalarOf<V>>
inline V fnma(V a, V b, V c) {
  return c - a * b;
}
template <class V, class S = ScalarOf<V>>
inline V min(V a, V b) {
  return lanes_of<V>([&](int l) { return a.v[l] < b.v[l] ? a.v[l] : b.v[l]; });
}
template <class V, class S = ScalarOf<V>>
inline V max(V a, V b) {
  return lanes_of<V>([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; });
}
template <class V, class S = ScalarOf<V>>
inline V abs(V a) {
  return lanes_of<V>([&](int l) { return static_cast<S>(__builtin_fabs(a.v[l])); });
}
inline Vec sqrt(Vec a) {
  return lanes_of<Vec>([&](int l) { return __builtin_sqrtf(a.v[l]); });
}
inline VecD sqrt(VecD a) {
  return lanes_of<VecD>([&](int l) { return __builtin_sqrt(a.v[l]); });
}
// To nearest, ties to even: next to 2^23 a float32 has no fraction bits left.
inline Vec round(Vec a) {
  return lanes_of<Vec>([&](int l) {
    const float anchor = __builtin_copysignf(8388608.0f, a.v[l]);
    const float rounded = __builtin_copysignf((a.v[l] + anchor) - anchor, a.v[l]);
    return __builtin_fabsf(a.v[l]) < 8388608.0f ? rounded : a.v[l];
  });
}
inline VecD round(VecD a) {
  return lanes_of<VecD>([&](int l) { return __builtin_nearbyint(a.v[l]); });
}
template <class V, class S = ScalarOf<V>>
inline V copysign(V magnitude, V sign) {
  return lanes_of<V>(
      [&](int l) { return static_cast<S>(__builtin_copysign(magnitude.v[l], sign.v[l])); });
}
// y * 2^n for whole |n| <= 252, through the subnormals: two factors, as 2^n alone may not exist.
inline Vec scale_by_power(Vec y, Vec n) {
  return lanes_of<Vec>([&](int l) {
    const bool finite = n.v[l] == n.v[l];
    const int32_t whole = finite ? static_cast<int32_t>(n.v[l]) : 0;
    const int32_t half = whole >> 1;
    const float a = float_from_bits(static_cast<uint32_t>(half + 127) << 23);
    const float b = float_from_bits(static_cast<uint32_t>(whole - half + 127) << 23);
    return y.v[l] * a * b;
  });
}

template <class V, class M = MaskFor<V>>
inline M less(V a, V b) {
  return lanes_of<M>([&](int l) { return a.v[l] < b.v[l]; });
}
template <class V, class M = MaskFor<V>>
inline M less_equal(V a, V b) {
  return lanes_of<M>([&](int l) { return a.v[l] <= b.v[l]; });
}
template <class V, class M = MaskFor<V>>
inline M equal(V a, V b) {
  return lanes_of<M>([&](int l) { return a.v[l] == b.v[l]; });
}
template <class V, class M = MaskFor<V>>
inline M is_nan(V a) {
  return lanes_of<M>([&](int l) { return a.v[l] != a.v[l]; });
}
template <class V, class M = MaskFor<V>>
inline V select(M mask, V yes, V no) {
  return lanes_of<V>([&](int l) { return mask.v[l] ? yes.v[l] : no.v[l]; });
}

inline float reduce_add(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline double reduce_add(VecD a) { return a.v[0] + a.v[1]; }
inline float reduce_max(Vec a) {
  const Vec b = max(a, Vec{{a.v[2], a.v[3], a.v[2], a.v[3]}});
  return b.v[0] > b.v[1] ? b.v[0] : b.v[1];
}
inline double reduce_max(VecD a) { return a.v[0] > a.v[1] ? a.v[0] : a.v[1]; }

struct VecU {
  using Mask = scalar::Mask;
  using Scalar = uint32_t;
  static constexpr int kLanes = 4;
  uint32_t v[kLanes];

  static VecU broadcast(uint32_t value) { return {{value, value, value, value}}; }
  static VecU load(const uint32_t* p, int64_t count = kLanes) {
    return lanes_of<VecU>([&](int l) { return l < count ? p[l] : 0u; });
  }
  static VecU iota() { return {{0, 1, 2, 3}}; }
};

inline void store(uint32_t* p, VecU a, int64_t count = VecU::kLanes) {
  for (int64_t l = 0; l < count; ++l) p[l] = a.v[l];
}
inline VecU operator^(VecU a, VecU b) {
  return lanes_of<VecU>([&](int l) { return a.v[l] ^ b.v[l]; });
}
inline VecU operator&(VecU a, VecU b) {
  return lanes_of<VecU>([&](int l) { return a.v[l] & b.v[l]; });
}
inline VecU operator|(VecU a, VecU b) {
  return lanes_of<VecU>([&](int l) { return a.v[l] | b.v[l]; });
}
template <int kBits>
inline VecU shift_left(VecU a) {
  return lanes_of<VecU>([&](int l) { return a.v[l] << kBits; });
}
template <int kBits>
inline VecU shift_right(VecU a) {
  return lanes_of<VecU>([&](int l) { return a.v[l] >> kBits; });
}
inline VecU multiply_low(VecU a, VecU b) { return a * b; }
// The 64-bit products of the even lanes, low halves in the even and high halves in the odd lanes.
inline VecU multiply_even(VecU a, VecU b) {
  const uint64_t first = static_cast<uint64_t>(a.v[0]) * b.v[0];
  const uint64_t second = static_cast<uint64_t>(a.v[2]) * b.v[2];
  return {{static_cast<uint32_t>(first), static_cast<uint32_t>(first >> 32),
           static_cast<uint32_t>(second), static_cast<uint32_t>(second >> 32)}};
}
// Lane 2i gets lane 2i + 1, odd lanes 0.
inline VecU odd_to_even(VecU a) { return {{a.v[1], 0, a.v[3], 0}}; }
// Lanes 3, 2, 1, 0 of each group of four.
inline VecU reverse_quads(VecU a) { return {{a.v[3], a.v[2], a.v[1], a.v[0]}}; }
// Lane 2i gets lane 2i of even, lane 2i + 1 gets lane 2i of odd.
inline VecU interleave_even(VecU even, VecU odd) {
  return {{even.v[0], odd.v[0], even.v[2], odd.v[2]}};
}
// All lanes: a * b = high * 2^32 + low.
inline void multiply_wide(VecU a, VecU b, VecU* high, VecU* low) {
  *high = lanes_of<VecU>(
      [&](int l) { return static_cast<uint32_t>((static_cast<uint64_t>(a.v[l]) * b.v[l]) >> 32); });
  *low = multiply_low(a, b);
}
inline Mask greater_equal(VecU a, VecU b) { return less_equal(b, a); }
inline VecU as_uint(Vec a) {
  return lanes_of<VecU>([&](int l) { return float_bits(a.v[l]); });
}
inline Vec as_float(VecU a) {
  return lanes_of<Vec>([&](int l) { return float_from_bits(a.v[l]); });
}
// Values, not bits; exact below 2^24.
inline Vec to_vec(VecU a) {
  return lanes_of<Vec>([&](int l) { return static_cast<float>(a.v[l]); });
}

}  // namespace
}  // namespace bigkernels::scalar
