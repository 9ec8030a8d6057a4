// Host memory that stands for the device's: what a launch may touch, who touched it, what is
// written.
#pragma once

#include <atomic>
#include <memory>

#include "types.h"

namespace emulator {

// Who wrote and who read each granule of a region during a launch. 0: nobody, kMany: several
// blocks.
struct Owners {
  static constexpr uint32_t kMany = 0x7fffffff, kAtomic = 0x80000000;
  std::unique_ptr<std::atomic<uint32_t>[]> writer, reader;
  explicit Owners(uint64_t granules);
};

struct Region {
  uint64_t begin, end;
  uint32_t granule;      // bytes of an element: the least that one thread touches
  uint8_t* initialised;  // a byte for each byte of the region, 0 until it is written; or null
  std::string name;
  bool constant = false;
  std::shared_ptr<Owners> owners;  // null: not watched
};

enum class Access : uint8_t { kRead, kWrite, kAtomic };

class GlobalMemory {
 public:
  void add(Region region, bool watched);
  void sort();
  // The region that holds the whole range, or null.
  const Region* find(uint64_t address, uint64_t bytes) const;
  // Name of the region nearest to an address that is in none.
  std::string nearest(uint64_t address) const;
  // Notes an access by a block; returns what is wrong with it, or an empty string.
  static std::string note(const Region& region, uint64_t address, uint32_t bytes, Access access,
                          uint32_t block);

 private:
  std::vector<Region> regions_;
};

}  // namespace emulator
