// The activations and their derivatives on the vectors of simd.h.
#pragma once

#include "common/cpu/simd.h"
#include "ffn/ffn.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

template <class V>
struct Activated {
  V value, slope;
};

// 0.5 * 2^r on |r| <= 0.5, lowest power first, relative error 2e-9.
constexpr float kHalfPowerPolynomial[7] = {
    0.5f * 1.0f,
    0.5f * 6.931471825e-01f,
    0.5f * 2.402264774e-01f,
    0.5f * 5.550332367e-02f,
    0.5f * 9.618436918e-03f,
    0.5f * 1.339887385e-03f,
    0.5f * 1.535336196e-04f,
};
// The normal distribution beyond t >= 0: 1 - Phi(t) = 0.5 * 2^(t P(t)), absolute error 2e-8 times
// 1 / max(1, t); t P(t) goes on falling beyond the fitted range, t <= 5.5.
constexpr float kNormalTailPolynomial[8] = {-1.151106000e+00f, -4.591982961e-01f, -5.253361166e-02f,
                                            7.126865443e-03f,  -1.917035988e-04f, -1.612938067e-04f,
                                            3.373781146e-05f,  -2.334948476e-06f};
constexpr double kSqrtTwoOverPi = 0.7978845608028654;
constexpr double kTanhCubic = 0.044715;

// 0.5 * 2^v for v <= 0; 0 from -160 down, NaN stays.
inline Vec half_power(Vec v) {
  v = max(Vec::broadcast(-160.0f), v);
  const Vec n = round(v);
  return scale_by_power(polynomial(v - n, kHalfPowerPolynomial), n);
}

// Both GELUs and SiLU are x S(x) with S rising from 0 to 1 and S(-x) = 1 - S(x): `tail` is
// S(-|x|), `body` S(|x|). Without cancellation, and infinities end as torch's formulas do.
template <class V>
struct Step {
  V tail, body;
};

template <FfnActivation kActivation>
inline Step<Vec> step_at(Vec x) {
  const Vec t = abs(x);
  const Vec one = Vec::broadcast(1.0f);
  if constexpr (kActivation == FfnActivation::kGelu) {
    const Vec tail = half_power(t * polynomial(t, kNormalTailPolynomial));
    return {tail, one - tail};
  }
  Vec exponent;  // S(x) = 1 / (1 + 2^-exponent), here of -|x|
  if constexpr (kActivation == FfnActivation::kGeluTanh) {
    const Vec linear = Vec::broadcast(static_cast<float>(-2.0 * kLog2E * kSqrtTwoOverPi));
    const Vec cubic =
        Vec::broadcast(static_cast<float>(-2.0 * kLog2E * kSqrtTwoOverPi * kTanhCubic));
    exponent = t * fma(cubic, t * t, linear);
  } else {
    exponent = t * Vec::broadcast(-kLog2E);
  }
  const Vec half = half_power(exponent);
  const Vec power = half + half;
  const Vec body = one / (one + power);
  return {power * body, body};
}

template <class V>
inline V step_value(V x, Step<V> s) {
  return select(less(x, V::zero()), s.tail, s.body);
}

template <FfnActivation kActivation>
inline Vec activate(Vec x) {
  if constexpr (kActivation == FfnActivation::kRelu) return max(Vec::zero(), x);
  return x * step_value(x, step_at<kActivation>(x));
}

template <class V>
inline V relu_slope(V x) {
  return select(less_equal(x, V::zero()), V::zero(), V::broadcast(1));
}

// Derivative of the exponent 2 u(x) of tanh GELU.
template <class V>
inline V tanh_inner_slope(V x) {
  using S = typename V::Scalar;
  const V cubic = V::broadcast(static_cast<S>(6.0 * kSqrtTwoOverPi * kTanhCubic));
  return fma(cubic, x * x, V::broadcast(static_cast<S>(2.0 * kSqrtTwoOverPi)));
}

// The value has the bits of activate(x).
template <FfnActivation kActivation>
inline Activated<Vec> activate_with_slope(Vec x) {
  if constexpr (kActivation == FfnActivation::kRelu)
    return {activate<kActivation>(x), relu_slope(x)};
  const Step<Vec> s = step_at<kActivation>(x);
  const Vec value = step_value(x, s);
  if constexpr (kActivation == FfnActivation::kGelu) {
    const Vec density = half_power(x * x * Vec::broadcast(-0.5f * kLog2E));
    return {x * value, fma(x * density, Vec::broadcast(static_cast<float>(kSqrtTwoOverPi)), value)};
  }
  Vec change = s.tail * s.body;
  if constexpr (kActivation == FfnActivation::kGeluTanh) change = change * tanh_inner_slope(x);
  return {x * value, fma(x, change, value)};
}

// float64: the formulas as they stand.
template <FfnActivation kActivation>
inline VecD step_of(VecD x) {
  const VecD one = VecD::broadcast(1.0), half = VecD::broadcast(0.5);
  if constexpr (kActivation == FfnActivation::kGelu)
    return half * (one + erf(x * VecD::broadcast(0.7071067811865476)));
  if constexpr (kActivation == FfnActivation::kGeluTanh) {
    const VecD inner = x * fma(VecD::broadcast(kTanhCubic), x * x, one);
    return half * (one + tanh(inner * VecD::broadcast(kSqrtTwoOverPi)));
  }
  return one / (one + exp(VecD::zero() - x));
}

template <FfnActivation kActivation>
inline VecD activate(VecD x) {
  if constexpr (kActivation == FfnActivation::kRelu) return max(VecD::zero(), x);
  return x * step_of<kActivation>(x);
}

template <FfnActivation kActivation>
inline Activated<VecD> activate_with_slope(VecD x) {
  if constexpr (kActivation == FfnActivation::kRelu)
    return {activate<kActivation>(x), relu_slope(x)};
  const VecD s = step_of<kActivation>(x);
  VecD change;
  if constexpr (kActivation == FfnActivation::kGelu) {
    const VecD density = exp(x * x * VecD::broadcast(-0.5));
    change = density * VecD::broadcast(0.5 * kSqrtTwoOverPi);
  } else {
    change = s * (VecD::broadcast(1.0) - s);
    if constexpr (kActivation == FfnActivation::kGeluTanh) change = change * tanh_inner_slope(x);
  }
  return {x * s, fma(x, change, s)};
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
