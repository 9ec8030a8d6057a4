// A Transformer encoder at inference on the CPU: all layers in one call, on packed tokens. The
// letters: T tokens, E width, F hidden width. Maths and layout of the weights: README.md of
// bigkernels/ops/encoder.
#pragma once

#include <cstdint>

#include "attention/attention.h"
#include "common/dtype.h"
#include "common/math.h"
#include "ffn/ffn.h"

namespace bigkernels {

enum class EncoderPrecision : int64_t { kFloat32, kHigh, kBFloat16, kInt8, kInt8Weights };

struct EncoderShape {
  int64_t layers, heads, width, hidden;
  EncoderPrecision precision;
};

// The products of a layer. Query, key and value are one.
enum EncoderProduct { kQueryKeyValue, kOut, kUp, kDown, kEncoderProducts };
enum EncoderNorm { kNorm1, kNorm2, kEncoderNorms };

static inline int64_t product_rows(const EncoderShape& shape, int product) {
  if (product == kQueryKeyValue) return 3 * shape.width;
  return product == kUp ? shape.hidden : shape.width;
}
static inline int64_t product_depth(const EncoderShape& shape, int product) {
  return product == kDown ? shape.hidden : shape.width;
}

// Bytes of a weight's element as it is packed. With integers the product after the attention, an
// eighth of all at most, is bfloat16's: nothing has seen its rows whole, to scale them.
static inline int64_t packed_element(EncoderPrecision precision, int product) {
  if (precision == EncoderPrecision::kFloat32 || precision == EncoderPrecision::kHigh) return 4;
  return precision == EncoderPrecision::kBFloat16 || product == kOut ? 2 : 1;
}

// Where the parts of one layer lie in the packed weights, in bytes; as many rows for every
// instruction set, whose panels and tiles take 16, 32 or 48 of them.
struct EncoderLayout {
  static constexpr int64_t kBlock = 96;
  int64_t weight[kEncoderProducts], bias[kEncoderProducts];  // bias, then two numbers a row
  int64_t norm[kEncoderNorms];                               // weight, then bias
  int64_t bytes;

  __attribute__((always_inline)) explicit EncoderLayout(const EncoderShape& shape) : bytes(0) {
    for (int p = 0; p < kEncoderProducts; ++p) {
      const int64_t rows = round_up(product_rows(shape, p), kBlock);
      weight[p] = take(rows * product_depth(shape, p) * packed_element(shape.precision, p));
      bias[p] = take(3 * rows * 4);
    }
    for (int64_t& place : norm) place = take(2 * round_up(shape.width, kBlock) * 4);
  }

 private:
  __attribute__((always_inline)) int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += size;
    return at;
  }
};

constexpr int64_t kEncoderHeader = 4096;

// A vector or matrix of a module's parameters, contiguous.
struct EncoderTensor {
  const void* data;  // null: absent
  DType dtype;       // kFloat32 or kBFloat16
};

constexpr int kEncoderTensors = 16;  // of one layer, as contract.py orders them

struct EncoderPackParams {
  EncoderShape shape;
  const EncoderTensor* tensors;  // (layers, 16)
  void* out;                     // layers * EncoderLayout::bytes, on a cache line
  int num_threads;
};

struct EncoderForwardParams {
  EncoderShape shape;
  const void* x;  // (T, E), contiguous
  void* out;      // the same
  DType dtype;    // kFloat32 or kBFloat16, of both
  int64_t tokens, batch;
  IndexArray starts;     // (B + 1,) first tokens of the sequences
  const int32_t* order;  // (B,) sequences, the longest first
  const void* packed;
  double eps;
  FfnActivation activation;
  bool norm_first, causal;
  int num_threads;
  void* workspace;  // as many bytes as asked for
};

struct EncoderKernels {
  bool (*serves)(const EncoderShape& shape);
  void (*pack)(const EncoderPackParams& params);
  int64_t (*workspace)(const EncoderForwardParams& params);
  void (*forward)(const EncoderForwardParams& params);
};

}  // namespace bigkernels
