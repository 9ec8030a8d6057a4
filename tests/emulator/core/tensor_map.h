// What a 128-byte CUtensorMap holds when the stand-in driver encodes it; the device's own is
// opaque.
#pragma once

#include <cstdint>

namespace emulator {

struct TensorMap {
  static constexpr uint64_t kMagic = 0x70616d726f736e74;
  uint64_t magic, address;
  uint32_t rank, element_bytes;
  uint64_t sizes[5];    // elements; the innermost first
  uint64_t strides[5];  // bytes; that of the innermost is element_bytes
  uint16_t box[5];
  uint8_t swizzle;  // 0 none, 1 of 32 bytes, 2 of 64, 3 of 128
  uint8_t fill_nan;
  uint8_t type;  // as CUtensorMapDataType
  uint8_t unused[11];
};
static_assert(sizeof(TensorMap) == 128);

}  // namespace emulator
