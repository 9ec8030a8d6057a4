#include <cuda_runtime.h>

#include "common/cuda/abi.h"

BIGKERNELS_CUDA_LAUNCHER int bigkernels_cuda_abi_version() { return bigkernels::cuda::kAbiVersion; }

BIGKERNELS_CUDA_LAUNCHER const char* bigkernels_cuda_error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

BIGKERNELS_CUDA_LAUNCHER int bigkernels_cuda_multiprocessors(int* count) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}
