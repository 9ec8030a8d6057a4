// A stand-in for the CUDA runtime: the launchers that nvcc built are linked with it instead, and
// each kernel they launch goes to a callback, which runs its PTX in the emulator. Host memory is
// device memory.
#include <cuda_runtime_api.h>

#include <deque>
#include <map>
#include <string>
#include <vector>

namespace {

// The device's limits for a block (sm_80 and sm_90; shared memory as set by the test).
constexpr unsigned kMaxThreads = 1024, kMaxGridYZ = 65535;
constexpr size_t kSharedWithoutAsking = 48 * 1024;

using LaunchCallback = int (*)(const char* kernel, const unsigned* grid, const unsigned* block,
                               unsigned long long shared, void** arguments);

struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};

struct Runtime {
  std::map<const void*, std::string> names;  // of kernels, by their host functions
  std::map<std::string, size_t> shared_limits;
  LaunchCallback launch = nullptr;
  std::string error_text = "no error";
  cudaError_t last = cudaSuccess;
  int multiprocessors = 4;
  int shared_limit = 0;
};

// Made at the first use: kernels are registered before this file's own variables would be.
Runtime& runtime() {
  static Runtime* instance = new Runtime;
  return *instance;
}

thread_local std::vector<Configuration> t_configurations;

cudaError_t refuse(cudaError_t error, const std::string& text) {
  runtime().error_text = text;
  return runtime().last = error;
}

bool out_of_bounds(dim3 grid, dim3 block) {
  return grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > kMaxGridYZ ||
         grid.z > kMaxGridYZ || block.x * block.y * block.z == 0 || block.z > 64 ||
         block.x * block.y * block.z > kMaxThreads;
}

}  // namespace

extern "C" {

void cudart_set_launch(LaunchCallback callback) { runtime().launch = callback; }
void cudart_set_error_text(const char* text) { runtime().error_text = text; }
void cudart_set_device(int multiprocessors, int shared_limit) {
  runtime().multiprocessors = multiprocessors;
  runtime().shared_limit = shared_limit;
}

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  runtime().names[host] = device;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                     struct CUstream_st* stream) {
  t_configurations.push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const Configuration top = t_configurations.back();
  t_configurations.pop_back();
  *grid = top.grid, *block = top.block, *shared = top.shared;
  *static_cast<void**>(stream) = top.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  const auto found = runtime().names.find(host);
  if (found == runtime().names.end()) {
    return refuse(cudaErrorInvalidDeviceFunction, "this function is not a kernel");
  }
  *kernel = reinterpret_cast<cudaKernel_t>(&found->second);
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t) {
  const std::string& name = *reinterpret_cast<const std::string*>(kernel);
  if (out_of_bounds(grid, block)) {
    return refuse(cudaErrorInvalidConfiguration, name + ": invalid configuration argument");
  }
  const auto limit = runtime().shared_limits.find(name);
  const size_t allowed =
      limit == runtime().shared_limits.end() ? kSharedWithoutAsking : limit->second;
  if (shared > allowed) {
    return refuse(cudaErrorInvalidValue, name + ": " + std::to_string(shared) +
                                             " bytes of dynamic shared memory, the limit is " +
                                             std::to_string(allowed));
  }
  if (runtime().launch == nullptr) return refuse(cudaErrorNoDevice, "no emulator is attached");
  const unsigned grid_size[3] = {grid.x, grid.y, grid.z},
                 block_size[3] = {block.x, block.y, block.z};
  const int error = runtime().launch(name.c_str(), grid_size, block_size, shared, arguments);
  if (error != 0) runtime().last = static_cast<cudaError_t>(error);
  return static_cast<cudaError_t>(error);
}

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > runtime().shared_limit) {
    return refuse(cudaErrorInvalidValue, "more dynamic shared memory than the device has");
  }
  runtime().shared_limits[runtime().names.at(host)] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = runtime().last;
  runtime().last = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return runtime().last; }
const char* cudaGetErrorString(cudaError_t) { return runtime().error_text.c_str(); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = runtime().multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = runtime().shared_limit;
      return cudaSuccess;
    default:
      return refuse(cudaErrorInvalidValue, "the stand-in knows no such device attribute");
  }
}

cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  __builtin_memset(at, value, bytes);
  return cudaSuccess;
}

}  // extern "C"
