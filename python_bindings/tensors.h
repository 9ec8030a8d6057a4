// What the op front ends share: torch's stable-ABI tensors on one side, the kernels' dtypes,
// pointers and strides on the other.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/dtype.h"
#include "common/math.h"
#include "common/parameter_row.h"
#include "common/row_dropout.h"

namespace bigkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16, float16 or float64, got ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
}

inline ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ScalarType::Float;
    case DType::kBFloat16:
      return ScalarType::BFloat16;
    case DType::kFloat16:
      return ScalarType::Half;
    default:
      return ScalarType::Double;
  }
}

using Sizes = std::vector<int64_t>;

inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Sizes(sizes.data(), sizes.data() + sizes.size());
}

// For tests that watch what is allocated: then it goes by way of torch's dispatcher, which costs a
// microsecond more.
inline bool g_watched_allocations = false;

inline Tensor watched_empty_strided(const Tensor& like, const Sizes& sizes, const Sizes& strides,
                                    ScalarType dtype) {
  using torch::headeronly::IntHeaderOnlyArrayRef;
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{
      from(IntHeaderOnlyArrayRef(sizes)), from(IntHeaderOnlyArrayRef(strides)),
      from(std::optional(dtype)),         from(std::nullopt),
      from(std::optional(like.device())), from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Uninitialised, with the given strides, on the device of `like`.
inline Tensor empty_strided(const Tensor& like, const Sizes& sizes, const Sizes& strides,
                            ScalarType dtype) {
  if (g_watched_allocations) return watched_empty_strided(like, sizes, strides, dtype);
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const int32_t shim_dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), shim_dtype, device_type,
                                                  device_index, &handle));
  return Tensor(handle);
}

// Uninitialised and contiguous.
inline Tensor empty(const Tensor& like, const Sizes& sizes, ScalarType dtype) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    strides[dim] = stride;
    stride *= sizes[dim] > 1 ? sizes[dim] : 1;
  }
  return empty_strided(like, sizes, strides, dtype);
}

// What stands for an output that nobody needs.
inline Tensor no_output(const Tensor& like, ScalarType dtype) { return empty(like, {0}, dtype); }

// Asks first: a call into the dispatcher costs about a microsecond even when there is nothing to
// copy.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline const void* pointer_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

// The value of a 0-d int64 tensor on the CPU (seed, offset); 0 for None.
inline int64_t int_or_zero(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? *tensor->const_data_ptr<int64_t>() : 0;
}

inline int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

// Uninitialised memory for the time of one call, from torch's allocator; nothing if bytes is 0.
class Scratch {
 public:
  Scratch(const Tensor& like, int64_t bytes) {
    if (bytes > 0) tensor_ = empty(like, {bytes}, ScalarType::Byte);
  }
  void* data() const { return tensor_.has_value() ? tensor_->mutable_data_ptr() : nullptr; }

 private:
  std::optional<Tensor> tensor_;
};

// A tensor seen as (count, length) rows of adjacent elements, `stride` elements apart.
struct Rows {
  Tensor tensor;  // keeps a copy alive where one was needed
  int64_t count;
  int64_t stride;

  const void* data() const { return tensor.const_data_ptr(); }
};

// The trailing dimensions of the tensor must multiply to length. Copies only if a row is not dense
// or the rows are not evenly spaced.
inline Rows rows_of(const Tensor& tensor, int64_t length) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const int64_t count = length > 0 ? tensor.numel() / length : 0;
  if (tensor.is_contiguous()) return {tensor, count, length};
  int64_t inner = 1;       // elements of the trailing dimensions passed so far
  int64_t row_stride = 0;  // 0 until the first dimension of rows
  int64_t rows = 1;
  for (int64_t dim = static_cast<int64_t>(sizes.size()) - 1; dim >= 0; --dim) {
    if (sizes[dim] == 1) continue;
    bool even;
    if (inner < length) {
      even = strides[dim] == inner;
      inner *= sizes[dim];
    } else if (rows == 1) {
      even = true;
      row_stride = strides[dim];
      rows = sizes[dim];
    } else {
      even = strides[dim] == row_stride * rows;
      rows *= sizes[dim];
    }
    if (!even) return {torch::stable::contiguous(tensor), count, length};
  }
  return {tensor, count, row_stride};
}

// A vector of parameters, kept alive for the call.
struct Parameter {
  std::optional<Tensor> tensor;
  ParameterRow row;

  Parameter(const OptionalTensor& given, const char* name, int64_t columns, DType dtype)
      : row{nullptr, statistics_dtype(dtype)} {
    if (!given.has_value()) return;
    tensor = dense(*given);
    row = {tensor->const_data_ptr(), dtype_of(*tensor)};
    STD_TORCH_CHECK(tensor->numel() == columns, name, ": ", tensor->numel(), " elements, expected ",
                    columns);
    STD_TORCH_CHECK(row.dtype == dtype || row.dtype == DType::kFloat32, name,
                    ": expected the dtype of x or float32");
  }
};

// Row positions for dropout: kept alive for the call.
struct Positions {
  std::optional<Tensor> rows;
  RowDropout dropout;

  Positions(const Tensor& x, int64_t row_count, double p, const std::optional<Tensor>& seed,
            const std::optional<Tensor>& offset, const std::optional<Tensor>& given)
      : dropout{p, int_or_zero(seed), int_or_zero(offset), nullptr, 1} {
    if (x.dim() > 1) dropout.period = max_int(1, x.sizes()[x.dim() - 2]);
    if (!given.has_value()) return;
    rows = dense(*given);
    dropout.rows = rows->const_data_ptr<int64_t>();
    STD_TORCH_CHECK(rows->numel() == row_count, "rows: ", rows->numel(), " elements, expected ",
                    row_count);
  }
};

}  // namespace bigkernels
