// What the CPU and the CUDA front end of the layer_norm room have in common: checks of what the
// kernels read without looking, and results.
#pragma once

#include "layer_norm/layer_norm.h"
#include "tensors.h"

namespace bigkernels {

inline void check_rows(const Tensor& x, int64_t columns) {
  STD_TORCH_CHECK(columns > 0 && x.numel() % columns == 0, "layer_norm: ", x.numel(),
                  " elements are not rows of ", columns);
}

// The same number of elements and dtype as `like`: what the kernels read without looking.
inline void check_like(const Tensor& tensor, const char* name, const Tensor& like) {
  STD_TORCH_CHECK(tensor.numel() == like.numel() && tensor.scalar_type() == like.scalar_type(),
                  name, ": expected the shape and dtype of x");
}

struct LayerNormForwardResult {
  Tensor out, sum, mean, rstd;
};

struct LayerNormNeeds {
  bool dx, dx_dropped, dweight, dbias, dx_bias;
};

struct LayerNormBackwardResult {
  Tensor dx, dx_dropped, dweight, dbias, dx_bias;
};

// Allocated if needed, else empty; `data` gets its memory or null.
inline Tensor parameter_gradient(const Tensor& x, bool needed, int64_t columns, ScalarType dtype,
                                 void** data) {
  const Tensor result = empty(x, {needed ? columns : 0}, dtype);
  *data = needed ? result.mutable_data_ptr() : nullptr;
  return result;
}

inline Tensor input_gradient(const Tensor& x, bool needed, void** data) {
  if (!needed) return no_output(x, x.scalar_type());
  const Tensor result = empty(x, sizes_of(x), x.scalar_type());
  *data = result.mutable_data_ptr();
  return result;
}

}  // namespace bigkernels
