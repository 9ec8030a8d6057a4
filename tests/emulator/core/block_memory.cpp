// Every access to memory: where it lands, and what the checks say of it.
#include <algorithm>

#include "block.h"

namespace emulator {

uint8_t* Block::global(const Instruction& instruction, uint64_t address, uint32_t bytes,
                       Access access) {
  const Region* region = last_region_;
  if (region == nullptr || address < region->begin || address + bytes > region->end) {
    region = launch.memory.find(address, bytes);
    if (region == nullptr) {
      report(instruction, format("global %s of %u bytes out of bounds, %s",
                                 access == Access::kRead ? "read" : "write", bytes,
                                 launch.memory.nearest(address).c_str()));
      return nullptr;
    }
    last_region_ = region;
  }
  if (launch.options.checked) {
    report(instruction,
           GlobalMemory::note(*region, address, bytes, access, static_cast<uint32_t>(index_)));
  }
  return reinterpret_cast<uint8_t*>(address);
}

uint8_t* Block::shared(Warp& warp, const Instruction& instruction, uint32_t lane, uint64_t offset,
                       uint32_t bytes, Access access, const uint8_t* fresh) {
  if (!shared_memory.holds(offset, bytes)) {
    report(instruction,
           format("shared %s of %u bytes out of bounds, at byte %lld of %llu",
                  access == Access::kRead ? "read" : "write", bytes,
                  static_cast<long long>(offset) - kSharedStart,
                  static_cast<unsigned long long>(shared_memory.size() - kSharedStart)));
    return nullptr;
  }
  const Actor by = actor(warp, lane);
  report(instruction, access == Access::kRead ? shared_memory.read(offset, bytes, by)
                                              : shared_memory.write(offset, bytes, by, fresh,
                                                                    access == Access::kAtomic));
  // At once, so that the next lane's check sees it.
  if (fresh != nullptr) std::memcpy(shared_memory.data(offset), fresh, bytes);
  return shared_memory.data(offset);
}

uint8_t* Block::private_memory(const Instruction& instruction, Space space, uint32_t thread,
                               uint64_t offset, uint32_t bytes) {
  std::vector<uint8_t>& memory = space == Space::kLocal ? local_.at(thread) : launch.parameters;
  if (offset + bytes > memory.size()) {
    report(instruction, format("%s access of %u bytes out of bounds",
                               space == Space::kLocal ? "local" : "parameter", bytes));
    return nullptr;
  }
  return memory.data() + offset;
}

void Block::locate(Warp& warp, const Instruction& instruction, Space space, uint64_t* address,
                   uint32_t mask, uint32_t bytes, Access access, const uint8_t* fresh,
                   uint8_t** host) {
  const auto which = [&](uint64_t at) {
    if (space != Space::kGeneric) return space;
    const uint64_t window = at & kWindowMask;
    return window == kSharedWindow      ? Space::kShared
           : window == kLocalWindow     ? Space::kLocal
           : window == kParameterWindow ? Space::kParameter
                                        : Space::kGlobal;
  };
  ++accesses_;
  if (!traffic_.empty()) {
    const Space first = which(address[__builtin_ctz(mask)]);
    if (first == Space::kShared || first == Space::kGlobal) {
      count(instruction, first == Space::kShared, address, mask, bytes);
    }
  }
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    host[lane] = nullptr;
    if (address[lane] % bytes != 0) {
      report(instruction, format("misaligned access of %u bytes, address ends in 0x%02x", bytes,
                                 static_cast<unsigned>(address[lane] & 255)));
      continue;
    }
    const Space at = which(address[lane]);
    const uint64_t offset =
        space == Space::kGeneric ? address[lane] & ~kWindowMask : address[lane] & 0xffffffff;
    if (at == Space::kGlobal) {
      host[lane] = global(instruction, address[lane], bytes, access);
    } else if (at == Space::kShared) {
      host[lane] = shared(warp, instruction, static_cast<uint32_t>(lane), offset, bytes, access,
                          fresh != nullptr ? fresh + lane * bytes : nullptr);
    } else {
      host[lane] = private_memory(instruction, at, warp.id * kLanes + static_cast<uint32_t>(lane),
                                  offset, bytes);
    }
  }
}

namespace {

// Cycles that shared memory needs: lanes of one phase that want different words of a bank wait.
void count_wavefronts(Traffic& traffic, const uint64_t* address, uint32_t mask, uint32_t bytes) {
  const int phase = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;  // lanes served together
  for (int first = 0; first < kLanes; first += phase) {
    std::set<uint64_t> words;
    int banks[32] = {}, most = 0;
    for (int lane = first; lane < first + phase; ++lane) {
      if (!(mask >> lane & 1)) continue;
      for (uint64_t word = address[lane] / 4; word <= (address[lane] + bytes - 1) / 4; ++word) {
        if (words.insert(word).second) most = std::max(most, ++banks[word % 32]);
      }
    }
    traffic.moved += static_cast<uint64_t>(most);
    traffic.ideal += most > 0;
  }
}

void count_sectors(Traffic& traffic, const uint64_t* address, uint32_t mask, uint32_t bytes) {
  constexpr uint64_t kSector = 32;
  std::set<uint64_t> sectors, used;
  for (; mask != 0; mask &= mask - 1) {
    const uint64_t begin = address[__builtin_ctz(mask)], end = begin + bytes - 1;
    for (uint64_t at = begin / kSector; at <= end / kSector; ++at) sectors.insert(at);
    used.insert(begin);
  }
  traffic.moved += sectors.size();
  traffic.ideal += (used.size() * bytes + kSector - 1) / kSector;
}

}  // namespace

void Block::count(const Instruction& instruction, bool is_shared, const uint64_t* address,
                  uint32_t mask, uint32_t bytes) {
  Traffic& traffic = traffic_[static_cast<size_t>(&instruction - kernel.code.data())];
  ++traffic.accesses;
  traffic.bytes += static_cast<uint64_t>(__builtin_popcount(mask)) * bytes;
  (is_shared ? count_wavefronts : count_sectors)(traffic, address, mask, bytes);
}

}  // namespace emulator
