// A stand-in for the CUDA driver, for programs that load PTX themselves. Device memory is host
// memory; a launch returns when its blocks have run, and fails if a check of the emulator found
// something.
#include <cstdlib>
#include <map>
#include <string>

#include "api.h"
#include "tensor_map.h"

namespace {

enum Status {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInvalidImage = 200,
  kNotFound = 500,
  kLaunchFailure = 719
};

struct Function {
  Module* module;
  std::string name;
};

struct Device {
  std::map<uint64_t, std::vector<uint8_t>> memory;  // a byte for each: 0 until it is written
  std::map<std::pair<Module*, std::string>, Function> functions;
  std::string text = "no error";
  uint64_t seed = 1;
  int major = 9;
};
Device g_device;

int refuse(int status, std::string text) {
  g_device.text = std::move(text);
  return status;
}

}  // namespace

extern "C" {

// The order of warps and blocks of the launches to come, and the device's compute capability.
void emulator_driver_set(uint64_t seed, int major) {
  g_device.seed = seed;
  g_device.major = major;
}

int cuInit(unsigned) { return kSuccess; }

int cuDeviceGet(int* device, int ordinal) {
  *device = 0;
  return ordinal == 0 ? kSuccess : refuse(kInvalidValue, "there is one device");
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  constexpr int kMajor = 75, kMinor = 76;
  if (attribute != kMajor && attribute != kMinor) return refuse(kInvalidValue, "attribute");
  *value = attribute == kMajor ? g_device.major : 0;
  return kSuccess;
}

int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &g_device;
  return kSuccess;
}
int cuCtxSetCurrent(void*) { return kSuccess; }
int cuCtxSynchronize() { return kSuccess; }

int cuGetErrorString(int, const char** text) {
  *text = g_device.text.c_str();
  return kSuccess;
}

int cuModuleLoadData(Module** module, const char* image) {
  *module = emulator_open(image);
  return *module ? kSuccess : refuse(kInvalidImage, emulator_text());
}

int cuModuleUnload(Module* module) {
  std::erase_if(g_device.functions, [&](const auto& item) { return item.first.first == module; });
  emulator_close(module);
  return kSuccess;
}

int cuModuleGetFunction(Function** function, Module* module, const char* name) {
  if (emulator_parameters(module, name) == nullptr) return refuse(kNotFound, emulator_text());
  Function& found = g_device.functions[{module, name}];
  found = {module, name};
  *function = &found;
  return kSuccess;
}

int cuFuncSetAttribute(Function*, int, int) { return kSuccess; }

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (memory == nullptr) return refuse(kOutOfMemory, "out of memory");
  *address = reinterpret_cast<uint64_t>(memory);
  g_device.memory[*address].assign(bytes, 0);
  return kSuccess;
}

int cuMemFree_v2(uint64_t address) {
  if (g_device.memory.erase(address) == 0) return refuse(kInvalidValue, "not allocated");
  std::free(reinterpret_cast<void*>(address));
  return kSuccess;
}

int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  auto place = g_device.memory.upper_bound(to);
  if (place == g_device.memory.begin()) return refuse(kInvalidValue, "not allocated");
  --place;
  if (to + bytes > place->first + place->second.size()) {
    return refuse(kInvalidValue, "not allocated");
  }
  std::memset(&place->second[to - place->first], 1, bytes);
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return kSuccess;
}

int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return kSuccess;
}

int cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, void*,
                   void** arguments, void**) {
  std::vector<EmulatorRegion> regions;
  for (auto& [address, written] : g_device.memory) {
    regions.push_back({address, written.size(), 1, 1, written.data(), "an allocation"});
  }
  EmulatorLaunch launch = {};
  launch.kernel = function->name.c_str();
  const unsigned grid[] = {grid_x, grid_y, grid_z}, block[] = {block_x, block_y, block_z};
  std::memcpy(launch.grid, grid, sizeof grid);
  std::memcpy(launch.block, block, sizeof block);
  launch.dynamic_shared = shared;
  launch.threads = 1;
  launch.seed = g_device.seed;
  launch.limit = 5'000'000;
  launch.checked = launch.init_fences = 1;
  launch.arguments = arguments;
  launch.region_count = static_cast<uint32_t>(regions.size());
  launch.regions = regions.data();
  const int status = emulator_launch(function->module, &launch);
  return status == 0 ? kSuccess : refuse(kLaunchFailure, emulator_text());
}

int cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes,
                           const uint64_t* strides, const uint32_t* box, const uint32_t* steps,
                           int interleave, int swizzle, int, int fill) {
  // By CUtensorMapDataType: u8, u16, u32, s32, u64, s64, f16, f32, f64, bf16, f32 ftz, tf32 twice.
  static constexpr uint32_t kBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  static constexpr uint32_t kRowBytes[] = {0, 32, 64, 128};
  if (type < 0 || type > 12 || rank < 1 || rank > 5 || interleave != 0 || swizzle < 0 ||
      swizzle > 3) {
    return refuse(kInvalidValue, "tensor map: type, rank, interleave or swizzle");
  }
  emulator::TensorMap made = {};
  made.magic = emulator::TensorMap::kMagic;
  made.address = reinterpret_cast<uint64_t>(address);
  made.rank = rank;
  made.element_bytes = kBytes[type];
  made.swizzle = static_cast<uint8_t>(swizzle);
  made.fill_nan = static_cast<uint8_t>(fill);
  made.type = static_cast<uint8_t>(type);
  made.strides[0] = made.element_bytes;
  bool good = made.address % 16 == 0;
  for (uint32_t i = 0; i < rank; ++i) {
    made.sizes[i] = sizes[i];
    if (i > 0) made.strides[i] = strides[i - 1];
    made.box[i] = static_cast<uint16_t>(box[i]);
    good &= sizes[i] > 0 && box[i] > 0 && box[i] <= 256 && steps[i] == 1;
    good &= i == 0 || (strides[i - 1] % 16 == 0 && strides[i - 1] > 0);
  }
  const uint32_t row = box[0] * made.element_bytes;
  good &= row % 16 == 0 && (swizzle == 0 || row <= kRowBytes[swizzle]);
  if (!good) return refuse(kInvalidValue, "tensor map: address, sizes, strides or box");
  std::memcpy(map, &made, sizeof made);
  return kSuccess;
}

}  // extern "C"
