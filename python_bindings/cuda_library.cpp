#include "cuda_library.h"

#include <dlfcn.h>

#include <mutex>
#include <string>

// Exported by CUDA builds of torch only, hence weak: null in the others.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace bigkernels {
namespace {

constexpr const char* kFileName = "libbigkernels_cuda.so";

struct Loaded {
  std::mutex mutex;
  std::string path;  // empty: beside this library
  bool takes_cpu_tensors = false;
  std::optional<CudaLibrary> library;
};

Loaded& loaded() {
  static Loaded instance;
  return instance;
}

std::string default_path() {
  Dl_info info;
  STD_TORCH_CHECK(dladdr(reinterpret_cast<void*>(&loaded), &info) != 0 && info.dli_fname,
                  "cannot tell where the extension was loaded from");
  const std::string self = info.dli_fname;
  const size_t slash = self.rfind('/');
  return (slash == std::string::npos ? "" : self.substr(0, slash + 1)) + kFileName;
}

template <typename Function>
void resolve(void* handle, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(handle, name));
  STD_TORCH_CHECK(function != nullptr, kFileName, " has no ", name);
}

CudaLibrary load(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  STD_TORCH_CHECK(handle != nullptr, "the CUDA kernels do not load: ", dlerror());
  decltype(&bigkernels_cuda_abi_version) version;
  resolve(handle, "bigkernels_cuda_abi_version", version);
  STD_TORCH_CHECK(version() == cuda::kAbiVersion, path, " has ABI version ", version(),
                  ", this extension needs ", cuda::kAbiVersion, ": build both anew");
  CudaLibrary library;
  resolve(handle, "bigkernels_cuda_error_text", library.error_text);
  resolve(handle, "bigkernels_cuda_multiprocessors", library.multiprocessors);
  resolve(handle, "bigkernels_layer_norm_forward", library.layer_norm_forward);
  resolve(handle, "bigkernels_layer_norm_backward", library.layer_norm_backward);
  return library;
}

void* current_stream(const Tensor& x) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this build of torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return stream;
}

// For tests: another file in place of the kernels, from the next call on; "" is the default again.
// One that runs kernels on the CPU is given CPU tensors, and may watch what is allocated.
void use_cuda_library(std::string path, bool takes_cpu_tensors) {
  Loaded& state = loaded();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.path = std::move(path);
  state.takes_cpu_tensors = g_watched_allocations = takes_cpu_tensors;
  state.library.reset();
}

}  // namespace

const CudaLibrary& cuda_library() {
  Loaded& state = loaded();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (!state.library) state.library = load(state.path.empty() ? default_path() : state.path);
  return *state.library;
}

CudaCall::CudaCall(const Tensor& x, std::initializer_list<const std::optional<Tensor>*> others)
    : library_(cuda_library()) {
  STD_TORCH_CHECK(x.is_cuda() || loaded().takes_cpu_tensors,
                  "the CUDA kernels were given a tensor on another device");
  for (const std::optional<Tensor>* other : others) {
    STD_TORCH_CHECK(!other->has_value() || ((*other)->is_cuda() == x.is_cuda() &&
                                            (*other)->get_device_index() == x.get_device_index()),
                    "the CUDA kernels were given tensors on different devices");
  }
  if (!x.is_cuda()) return;
  guard_.emplace(x.get_device_index());
  stream_ = current_stream(x);
}

int CudaCall::multiprocessors() const {
  int count = 0;
  check(library_.multiprocessors(&count), "multiprocessors");
  return count;
}

void CudaCall::check(int error, const char* name) const {
  STD_TORCH_CHECK(error == 0, name, ": CUDA error ", error, ": ", library_.error_text(error));
}

Tensor dense_aligned(const Tensor& tensor) {
  const Tensor result = dense(tensor);
  if (reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 == 0) return result;
  return torch::stable::clone(result);
}

}  // namespace bigkernels

STABLE_TORCH_LIBRARY(bigkernels_test, m) {
  m.def("use_cuda_library(str path, bool takes_cpu_tensors) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bigkernels_test, CompositeExplicitAutograd, m) {
  m.impl("use_cuda_library", TORCH_BOX(&bigkernels::use_cuda_library));
}
