// What libbigkernels_cuda.so and its loader agree on. The version goes up with every change of a
// params struct or of a launcher's signature: both files may come from different builds.
#pragma once

#define BIGKERNELS_CUDA_LAUNCHER extern "C" __attribute__((visibility("default")))

namespace bigkernels::cuda {

constexpr int kAbiVersion = 1;

}  // namespace bigkernels::cuda

// Every launcher returns a cudaError_t, 0 for success, and takes a cudaStream_t as its last
// argument.
BIGKERNELS_CUDA_LAUNCHER int bigkernels_cuda_abi_version();
BIGKERNELS_CUDA_LAUNCHER const char* bigkernels_cuda_error_text(int error);
// Of the current device.
BIGKERNELS_CUDA_LAUNCHER int bigkernels_cuda_multiprocessors(int* count);
