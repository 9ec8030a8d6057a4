// What wgmma has under way in one warp.
#pragma once

#include <array>
#include <vector>

#include "types.h"

namespace emulator {

struct Accumulator {  // a register that wgmma adds to, and what it left there
  uint32_t offset = 0;
  uint64_t group = 0;
  bool pending = false;  // until it is waited for
  std::array<uint32_t, kLanes> values{};
};

// By the offset of the register; rows start at multiples of 32 bytes.
class Accumulators {
 public:
  void clear() {
    all_.clear();
    place_.clear();
  }
  Accumulator* find(uint32_t offset) {
    const uint32_t row = offset / 32;
    return row < place_.size() && place_[row] != 0 ? &all_[place_[row] - 1u] : nullptr;
  }
  Accumulator& at(uint32_t offset) {
    if (Accumulator* found = find(offset)) return *found;
    if (offset / 32 >= place_.size()) place_.resize(offset / 32 + 1);
    all_.push_back({offset});
    place_[offset / 32] = static_cast<uint32_t>(all_.size());
    return all_.back();
  }
  auto begin() { return all_.begin(); }
  auto end() { return all_.end(); }

 private:
  std::vector<uint32_t> place_;  // 1 + index
  std::vector<Accumulator> all_;
};

// What a group of wgmma reads until it is waited for: chunks of shared memory, and registers of A.
struct ProductGroup {
  std::vector<uint64_t> chunks;
  std::vector<std::pair<Operand, std::array<uint32_t, kLanes>>> fragments;
  bool empty() const { return chunks.empty() && fragments.empty(); }
};

}  // namespace emulator
