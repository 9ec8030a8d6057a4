// exp, exp2, log, erf and tanh written once over the verbs of simd.h.
#pragma once

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// V: Vec, or several of them in step (pair.h).
template <class V, int kCount>
inline V polynomial(V x, const float (&coefficients)[kCount]) {
  V y = V::broadcast(coefficients[kCount - 1]);
  for (int i = kCount - 2; i >= 0; --i) y = fma(y, x, V::broadcast(coefficients[i]));
  return y;
}

// About 1 ulp; 0 at -inf and below -104, inf above 88.73, NaN stays.
inline Vec exp(Vec x) {
  // The bounds come first in min and max, so that a NaN, as the second argument, survives.
  x = max(Vec::broadcast(-104.0f), min(Vec::broadcast(89.0f), x));
  const Vec n = round(x * Vec::broadcast(kLog2E));
  Vec r = fnma(n, Vec::broadcast(kLn2High), x);
  r = fnma(n, Vec::broadcast(kLn2Low), r);
  const Vec p = polynomial(r, kExpPolynomial);
  return scale_by_power(fma(p, r * r, r) + Vec::broadcast(1.0f), n);
}

// 2^x, about 1 ulp, for -126 <= x < 128; NaN stays.
template <class V>
inline V exp2_normal(V x) {
  const V n = round(x);
  const V r = x - n;
  return scale_by_power(fma(polynomial(r, kExp2Polynomial), r, V::broadcast(1.0f)), n);
}

// The same down to -inf: 0 below -126, as a subnormal result, even one that rounds to 0, takes the
// CPU a hundred times as long. inf becomes NaN.
template <class V>
inline V exp2(V x) {
  const V least = V::broadcast(-126.0f);
  return select(less(x, least), V::zero(), exp2_normal(max(least, x)));
}

// base + log(x) for normal positive x, as if rounded once; inf and NaN stay.
inline Vec add_log(Vec base, Vec x) {
  // Counted from sqrt(1/2), the exponent field is n and the rest a mantissa m in [sqrt(1/2), sqrt
  // 2).
  const VecU start = VecU::broadcast(float_bits(0.707106769f));
  const VecU steps = shift_right<23>(as_uint(x) - start + VecU::broadcast(127u << 23));
  const Vec n = to_vec(steps) - Vec::broadcast(127.0f);
  const Vec m = as_float(as_uint(x) - shift_left<23>(steps) + VecU::broadcast(127u << 23));
  const Vec f = m - Vec::broadcast(1.0f);
  const Vec s = f * f;
  const Vec y = fma(n, Vec::broadcast(kLn2Low), polynomial(f, kLogPolynomial) * f * s);
  const Vec small = fnma(s, Vec::broadcast(0.5f), y) + f;
  const Vec large = n * Vec::broadcast(kLn2High);  // exact
  const Vec sum = base + large;
  const Vec part = sum - base;
  const Vec lost = (base - (sum - part)) + (large - part);  // what rounding took from sum
  return select(less(x, Vec::broadcast(__builtin_inff())), sum + (lost + small), base + x);
}

// About 1 ulp, for normal positive x; inf and NaN stay.
inline Vec log(Vec x) { return add_log(Vec::zero(), x); }

// About 1 ulp.
inline Vec erf(Vec x) {
  const Vec s = x * x;
  const Vec near = fma(polynomial(s, kErfSmallPolynomial), x, x);
  const Vec t = min(Vec::broadcast(4.05f), abs(x));  // erf is 1 in float32 from 3.92 on
  const Vec u = fma(polynomial(t, kErfLargePolynomial), t, t);
  const Vec far = Vec::broadcast(1.0f) - exp(Vec::zero() - u);
  return select(less(t, Vec::broadcast(0.93f)), near, copysign(far, x));
}

// About 1 ulp.
inline Vec tanh(Vec x) {
  const Vec s = x * x;
  const Vec near = fma(polynomial(s, kTanhPolynomial) * s, x, x);
  const Vec t = min(Vec::broadcast(10.0f), abs(x));  // tanh is 1 in float32 from 9.02 on
  const Vec one = Vec::broadcast(1.0f);
  const Vec far = one - Vec::broadcast(2.0f) / (exp(t + t) + one);
  return copysign(select(less(t, Vec::broadcast(0.625f)), near, far), x);
}

// float64 is the path of checks, not of speed: libm lane by lane.
template <class F>
inline VecD map_lanes(VecD x, const F& f) {
  double lanes[VecD::kLanes];
  store(lanes, x);
  for (int i = 0; i < VecD::kLanes; ++i) lanes[i] = f(lanes[i]);
  return VecD::load(lanes);
}

inline VecD exp(VecD x) {
  return map_lanes(x, [](double v) { return __builtin_exp(v); });
}
inline VecD exp2(VecD x) {
  return map_lanes(x, [](double v) { return __builtin_exp2(v); });
}
inline VecD log(VecD x) {
  return map_lanes(x, [](double v) { return __builtin_log(v); });
}
inline VecD add_log(VecD base, VecD x) { return base + log(x); }
inline VecD erf(VecD x) {
  return map_lanes(x, [](double v) { return __builtin_erf(v); });
}
inline VecD tanh(VecD x) {
  return map_lanes(x, [](double v) { return __builtin_tanh(v); });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
