// Special registers: who a thread is, filled in when its block starts.
#include "block.h"

namespace emulator {

void Block::fill_specials(Warp& warp) {
  for (const SpecialRow& special_row : kernel.specials) {
    const Operand operand{Operand::kRegisters, special_row.bytes, false, special_row.offset, 0};
    for (int lane = 0; lane < kLanes; ++lane) {
      set_lane(warp, operand, lane, special(special_row.special, warp, warp.id * kLanes + lane));
    }
  }
}

uint64_t Block::special(Special which, const Warp& warp, uint32_t thread) const {
  using S = Special;
  const auto& block = launch.block;
  const uint32_t bit = 1u << (thread % kLanes);
  switch (which) {
    case S::kTidX:
      return thread % block[0];
    case S::kTidY:
      return thread / block[0] % block[1];
    case S::kTidZ:
      return thread / block[0] / block[1];
    case S::kBlockX:
      return block[0];
    case S::kBlockY:
      return block[1];
    case S::kBlockZ:
      return block[2];
    case S::kCtaX:
      return cta_[0];
    case S::kCtaY:
      return cta_[1];
    case S::kCtaZ:
      return cta_[2];
    case S::kGridX:
      return launch.grid[0];
    case S::kGridY:
      return launch.grid[1];
    case S::kGridZ:
      return launch.grid[2];
    case S::kLane:
      return thread % kLanes;
    case S::kWarp:
      return warp.id;
    case S::kWarps:
      return warps.size();
    case S::kMultiprocessor:
      return index_ % 132;
    case S::kDynamicShared:
      return launch.dynamic_shared;
    case S::kMaskLess:
      return bit - 1;
    case S::kMaskLessEqual:
      return bit | (bit - 1);
    case S::kMaskGreater:
      return ~(bit | (bit - 1));
    case S::kMaskGreaterEqual:
      return ~(bit - 1);
    case S::kMaskEqual:
      return bit;
    case S::kOne:
      return 1;
    case S::kZero:
      break;
  }
  return 0;
}

}  // namespace emulator
