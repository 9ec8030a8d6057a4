// Packing of a module's weights for the products of this instruction set.
#pragma once

#include <stdlib.h>

#include "common/cpu/panels.h"
#include "common/cpu/threads.h"
#include "encoder/rows-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Places of a layer's tensors; contract.py names them. Biases follow their weights.
constexpr int kProductTensors[kEncoderProducts] = {0, 6, 10, 12};
constexpr int kNormTensors[kEncoderNorms] = {8, 14};

// out[i] = tensor[begin + i] in float32, `missing` where the tensor is absent.
inline void read_tensor(EncoderTensor tensor, int64_t begin, int64_t count, float missing,
                        float* out) {
  const BFloat16* narrow = static_cast<const BFloat16*>(tensor.data) + begin;
  const float* plain = static_cast<const float*>(tensor.data) + begin;
  traverse<Vec>(0, count, [&](int64_t c, auto extent) {
    const Vec v = tensor.data == nullptr             ? Vec::broadcast(missing)
                  : tensor.dtype == DType::kBFloat16 ? load<Vec>(narrow + c, extent)
                                                     : load<Vec>(plain + c, extent);
    store(out + c, v, extent);
  });
}

// The matrix of one product of one layer: query, key and value follow each other.
struct PackSource {
  const EncoderTensor* tensors;  // of the layer
  EncoderShape shape;
  int product;
  float* bias;  // where the biases and two numbers more a row go

  int64_t rows() const { return product_rows(shape, product); }
  int64_t depth() const { return product_depth(shape, product); }
  // Tensor and row of the matrix' row n.
  const EncoderTensor* tensor_of(int64_t n, int64_t* row) const {
    const int64_t part = product == kQueryKeyValue ? n / shape.width : 0;
    *row = n - part * shape.width;
    return tensors + kProductTensors[product] + 2 * part;
  }
  // Rows past the end are 0.
  void read_row(int64_t n, float* out) const {
    int64_t row = 0;
    if (n >= rows()) {
      traverse<Vec>(0, depth(),
                    [&](int64_t c, auto extent) { store(out + c, Vec::zero(), extent); });
      return;
    }
    const EncoderTensor* tensor = tensor_of(n, &row);
    read_tensor(*tensor, row * depth(), depth(), 0.0f, out);
  }
  void read_biases() const {
    const int64_t parts = product == kQueryKeyValue ? 3 : 1, each = rows() / parts;
    for (int64_t part = 0; part < parts; ++part) {
      const int place = kProductTensors[product] + 2 * static_cast<int>(part) + 1;
      read_tensor(tensors[place], 0, each, 0.0f, bias + part * each);
    }
  }
};

// The numbers of a packed row beside its bias: the scale, and the sum of its integers.
inline float* scales_of(float* bias, int64_t rows) {
  return bias + round_up(rows, EncoderLayout::kBlock);
}
inline float* integer_sums_of(float* bias, int64_t rows) {
  return bias + 2 * round_up(rows, EncoderLayout::kBlock);
}

// Row n of the matrix as whole numbers in [-127, 127] times a scale, which is kept: NaN where a
// weight is not finite, so that the results are.
inline void read_integers(const PackSource& source, int64_t n, float* out) {
  const int64_t depth = source.depth();
  source.read_row(n, out);
  Vec top = Vec::zero(), spoilt = Vec::zero();  // a maximum may pass over a NaN, a sum does not
  traverse<Vec>(0, depth, [&](int64_t c, auto extent) {
    const Vec v = load<Vec>(out + c, extent);
    top = max(top, abs(v));
    spoilt = fma(v, Vec::zero(), spoilt);
  });
  const float most = reduce_max(top), nothing = reduce_add(spoilt);
  const float scale = (most > 0 ? most / 127.0f : 1.0f) + nothing;
  const bool finite = nothing == 0;
  for (int64_t k = 0; k < depth; ++k) out[k] = finite ? __builtin_rintf(out[k] / scale) : 0;
  scales_of(source.bias, source.rows())[n] = scale;
}

// kPanelWidth rows of the matrix, from `begin` on, as a panel; room: as many floats.
template <class W>
void pack_vector_panel(const PackSource& source, int64_t begin, float* room, W* out) {
  const int64_t depth = source.depth();
  constexpr bool kIntegers = sizeof(W) == 1;
  for (int64_t n = 0; n < kPanelWidth; ++n) {
    if constexpr (kIntegers) {
      read_integers(source, begin + n, room + n * depth);
    } else {
      source.read_row(begin + n, room + n * depth);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t n = 0; n < kPanelWidth; ++n) {
      const float value = room[n * depth + k];
      if constexpr (kIntegers) {
        out[k * kPanelWidth + n] = static_cast<W>(value);
      } else {
        from_float(value, out + k * kPanelWidth + n);
      }
    }
  }
}

// Biases and norms of layer i.
inline void pack_rows(const EncoderPackParams& params, const EncoderLayout& layout, int64_t i) {
  char* base = static_cast<char*>(params.out) + i * layout.bytes;
  const EncoderTensor* tensors = params.tensors + i * kEncoderTensors;
  const int64_t n = params.shape.width;
  for (int which = 0; which < kEncoderNorms; ++which) {
    float* out = reinterpret_cast<float*>(base + layout.norm[which]);
    read_tensor(tensors[kNormTensors[which]], 0, n, 1.0f, out);
    read_tensor(tensors[kNormTensors[which] + 1], 0, n, 0.0f,
                out + round_up(n, EncoderLayout::kBlock));
  }
  for (int product = 0; product < kEncoderProducts; ++product) {
    float* bias = reinterpret_cast<float*>(base + layout.bias[product]);
    PackSource{tensors, params.shape, product, bias}.read_biases();
  }
}

// Calls pack(source, panel, out, room) for every panel of `width` rows of every matrix; room:
// three times the panel's rows in float32.
template <class F>
inline void for_each_panel(const EncoderPackParams& params, const EncoderLayout& layout,
                           int64_t width, const F& pack) {
  const int64_t layers = params.shape.layers;
  parallel_tiles(params.num_threads, layers * kEncoderProducts, [&](int64_t tile, int) {
    const int64_t layer = tile / kEncoderProducts;
    const int product = static_cast<int>(tile % kEncoderProducts);
    char* base = static_cast<char*>(params.out) + layer * layout.bytes;
    const PackSource source = {params.tensors + layer * kEncoderTensors, params.shape, product,
                               reinterpret_cast<float*>(base + layout.bias[product])};
    char* out = base + layout.weight[product];
    const int64_t bytes = round_up(3 * width * source.depth() * 4, 64);
    float* room = static_cast<float*>(aligned_alloc(64, static_cast<size_t>(bytes)));
    for (int64_t n = 0; n < source.rows(); n += width) pack(source, n, out, room);
    free(room);
  });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
