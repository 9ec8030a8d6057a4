// Host side of every launcher.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

namespace bigkernels::cuda {

// A null pointer is absent and thus no obstacle.
inline bool aligned_to_16(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  }
  return true;
}

inline int launch_status() { return static_cast<int>(cudaGetLastError()); }

}  // namespace bigkernels::cuda
