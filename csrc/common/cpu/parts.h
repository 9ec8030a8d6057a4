// The vector verbs as functions on arrays, so that tests can hold each of them against float64.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace bigkernels {

enum class Function : int32_t { kExp = 0, kErf = 1, kTanh = 2, kSqrt = 3, kRound = 4, kAbs = 5 };

struct PartKernels {
  int lanes;  // of float32; float64 has half as many
  // out[i] = function(in[i]); n may be any length, in and out of any alignment.
  void (*map)(Function function, const float* in, float* out, int64_t n);
  void (*map_float64)(Function function, const double* in, double* out, int64_t n);
  // From and to kFloat32, kBFloat16, kFloat16, through the float32 lanes.
  void (*convert)(DType from, const void* in, DType to, void* out, int64_t n);
  float (*sum)(const float* in, int64_t n);
  float (*maximum)(const float* in, int64_t n);  // -inf if n is 0
  // a[i] * b[i] = high[i] * 2^32 + low[i], over one vector.
  void (*multiply_wide)(const uint32_t* a, const uint32_t* b, uint32_t* high, uint32_t* low);
  // One vector of counters of four words; returns as many words.
  void (*philox)(const uint32_t* counters, uint64_t seed, uint32_t* words);
  // keep[c] for the columns [0, n) of the row at sample b, position i.
  void (*dropout)(double p, int64_t seed, int64_t offset, uint32_t i, uint32_t b, uint8_t* keep,
                  int64_t n);
};

}  // namespace bigkernels
