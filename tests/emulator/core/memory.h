#pragma once

#include "block.h"

namespace emulator {

// Address of each lane of an address operand.
void lane_addresses(const Warp& warp, const Operand& operand, uint32_t mask, uint64_t* address);

}  // namespace emulator
