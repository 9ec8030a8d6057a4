// The activations and their derivatives. V: Vec, several of them in step, or VecD.
#pragma once

#include "common/cpu/pair.h"
#include "ffn/ffn.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Calls run.template operator()<activation>().
template <class F>
inline void visit_activation(FfnActivation activation, const F& run) {
  switch (activation) {
    case FfnActivation::kGelu:
      return run.template operator()<FfnActivation::kGelu>();
    case FfnActivation::kGeluTanh:
      return run.template operator()<FfnActivation::kGeluTanh>();
    case FfnActivation::kRelu:
      return run.template operator()<FfnActivation::kRelu>();
    case FfnActivation::kSilu:
      return run.template operator()<FfnActivation::kSilu>();
  }
}

template <class V>
struct Activated {
  V value, slope;
};

// The normal distribution beyond t >= 0: 1 - Phi(t) = 2^(t P(t) - 1), absolute error 2e-8 times
// 1 / max(1, t); t P(t) goes on falling beyond the fitted range, t <= 5.5.
constexpr float kNormalTailPolynomial[8] = {-1.151106000e+00f, -4.591982961e-01f, -5.253361166e-02f,
                                            7.126865443e-03f,  -1.917035988e-04f, -1.612938067e-04f,
                                            3.373781146e-05f,  -2.334948476e-06f};
constexpr double kSqrtTwoOverPi = 0.7978845608028654;
constexpr double kTanhCubic = 0.044715;

// 2^v for v <= 0, and 0 below 2^-64: a gradient times less could be subnormal, which the CPU takes
// a hundred times as long for.
template <class V>
inline V power_of_two(V v) {
  const V least = V::broadcast(-64.0f);
  return select(less(v, least), V::zero(), exp2_normal(max(least, v)));
}

// Both GELUs and SiLU are x S(x) with S rising from 0 to 1 and S(-x) = 1 - S(x): `tail` is
// S(-|x|), `body` S(|x|). So nothing cancels, and infinities end as in torch's formulas.
template <class V>
struct Step {
  V tail, body;
};

template <FfnActivation kActivation, class V>
inline Step<V> step_at(V x) {
  const V t = abs(x);
  const V one = V::broadcast(1.0f);
  if constexpr (kActivation == FfnActivation::kGelu) {
    const V tail = power_of_two(fma(t, polynomial(t, kNormalTailPolynomial), V::broadcast(-1.0f)));
    return {tail, one - tail};
  }
  V exponent;  // S(-t) = 2^exponent / (1 + 2^exponent)
  if constexpr (kActivation == FfnActivation::kGeluTanh) {
    constexpr double kLinear = -2.0 * kLog2E * kSqrtTwoOverPi;
    const V linear = V::broadcast(static_cast<float>(kLinear));
    const V cubic = V::broadcast(static_cast<float>(kLinear * kTanhCubic));
    exponent = t * fma(cubic, t * t, linear);
  } else {
    exponent = t * V::broadcast(-kLog2E);
  }
  const V power = power_of_two(exponent);
  const V body = one / (one + power);
  return {power * body, body};
}

template <class V>
inline V step_value(V x, Step<V> s) {
  return select(less(x, V::zero()), s.tail, s.body);
}

template <FfnActivation kActivation, class V>
inline V activate(V x) {
  if constexpr (kActivation == FfnActivation::kRelu) return max(V::zero(), x);
  return x * step_value(x, step_at<kActivation>(x));
}

template <class V>
inline V relu_slope(V x) {
  return select(less_equal(x, V::zero()), V::zero(), V::broadcast(1));
}

// Derivative of tanh GELU's 2 u(x), where S(x) = 1 / (1 + exp(-2 u)).
template <class V>
inline V tanh_inner_slope(V x) {
  using S = typename V::Scalar;
  const V cubic = V::broadcast(static_cast<S>(6.0 * kSqrtTwoOverPi * kTanhCubic));
  return fma(cubic, x * x, V::broadcast(static_cast<S>(2.0 * kSqrtTwoOverPi)));
}

// The value has the bits of activate(x).
template <FfnActivation kActivation, class V>
inline Activated<V> activate_with_slope(V x) {
  if constexpr (kActivation == FfnActivation::kRelu) {
    return {activate<kActivation>(x), relu_slope(x)};
  } else {
    const Step<V> s = step_at<kActivation>(x);
    const V value = step_value(x, s);
    V change;  // S'(x)
    if constexpr (kActivation == FfnActivation::kGelu) {
      const V density = power_of_two(x * x * V::broadcast(-0.5f * kLog2E));
      change = density * V::broadcast(static_cast<float>(0.5 * kSqrtTwoOverPi));
    } else {
      change = s.tail * s.body;
      if constexpr (kActivation == FfnActivation::kGeluTanh) change = change * tanh_inner_slope(x);
    }
    return {x * value, fma(x, change, value)};
  }
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
  if constexpr (kActivation == FfnActivation::kRelu) {
    return {activate<kActivation>(x), relu_slope(x)};
  } else {
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
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
