// The CUDA kernels as the front ends see them: launchers of libbigkernels_cuda.so, which is loaded
// at the first CUDA call, so that neither the import nor a machine without a GPU pays for it.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>
#include <optional>

#include "layer_norm/cuda.h"
#include "tensors.h"

namespace bigkernels {

struct CudaLibrary {
  decltype(&bigkernels_cuda_error_text) error_text;
  decltype(&bigkernels_cuda_multiprocessors) multiprocessors;
  decltype(&bigkernels_layer_norm_forward) layer_norm_forward;
  decltype(&bigkernels_layer_norm_backward) layer_norm_backward;
};

// Loads the library if need be; raises if it is missing or of another build.
const CudaLibrary& cuda_library();

// Makes the device of `x` current for the time of one call. Raises unless all tensors are on it.
class CudaCall {
 public:
  CudaCall(const Tensor& x, std::initializer_list<const std::optional<Tensor>*> others);

  void* stream() const { return stream_; }
  int multiprocessors() const;
  // Raises if a launcher returned an error; `name` is the operation's.
  void check(int error, const char* name) const;

 private:
  const CudaLibrary& library_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

// The tensor, or a dense copy, at a 16-byte boundary: what views with an odd offset are not.
Tensor dense_aligned(const Tensor& tensor);

}  // namespace bigkernels
