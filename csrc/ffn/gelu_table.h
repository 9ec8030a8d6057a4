// Both GELUs for results that are rounded to bfloat16: with S of activation-inl.h,
//   x S(x) = max(x, 0) - g(|x|),  g(t) = t (1 - S(t))
// where g is a cubic on each of 32 segments; absolute error 6e-7, which is g's own size at the last
// segment's end.
#pragma once

#include "ffn/ffn.h"

namespace bigkernels {

struct GeluTable {
  static constexpr int kSegments = 32, kTerms = 4;
  // From the middle of a segment to the next one's; the first is at 0.
  static constexpr float kStep = 0.165f;
  static constexpr float kEnd = kStep * (kSegments - 0.5f);
  // By powers of (t - middle) / kStep.
  alignas(64) float terms[kTerms][kSegments];
};

// activation: kGelu or kGeluTanh.
const GeluTable& gelu_table(FfnActivation activation);

}  // namespace bigkernels
