#include "global_memory.h"

#include <immintrin.h>

#include <algorithm>

namespace emulator {

Owners::Owners(uint64_t granules)
    : writer(new std::atomic<uint32_t>[granules]()),
      reader(new std::atomic<uint32_t>[granules]()) {}

void GlobalMemory::add(Region region, bool watched) {
  if (watched) {
    const uint64_t bytes = region.end - region.begin;
    region.owners = std::make_shared<Owners>((bytes + region.granule - 1) / region.granule);
  }
  regions_.push_back(std::move(region));
}

void GlobalMemory::sort() {
  std::sort(regions_.begin(), regions_.end(),
            [](const Region& a, const Region& b) { return a.begin < b.begin; });
}

const Region* GlobalMemory::find(uint64_t address, uint64_t bytes) const {
  // Regions may overlap (two views of one tensor): any one that holds the range will do.
  for (const Region& region : regions_) {
    if (address >= region.begin && address + bytes <= region.end) return &region;
    if (region.begin > address) break;
  }
  return nullptr;
}

std::string GlobalMemory::nearest(uint64_t address) const {
  const Region* best = nullptr;
  uint64_t least = 4096;
  for (const Region& region : regions_) {
    const uint64_t distance = address < region.begin  ? region.begin - address
                              : address >= region.end ? address - region.end
                                                      : 0;
    if (distance < least) least = distance, best = &region;
  }
  return best ? format("%llu bytes off %s", static_cast<unsigned long long>(least),
                       best->name.c_str())
              : "near no tensor of the launch";
}

namespace {

std::string note_write(std::atomic<uint32_t>& writer, std::atomic<uint32_t>& reader, uint32_t me,
                       bool atomic, const Region& region) {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  const uint32_t before = writer.load(kRelaxed);
  const uint32_t who = before & ~Owners::kAtomic;
  writer.store(me | (atomic ? Owners::kAtomic : 0), kRelaxed);
  if (who != 0 && who != me && !(atomic && (before & Owners::kAtomic))) {
    return format("blocks %u and %u both write one element of %s", who - 1, me - 1,
                  region.name.c_str());
  }
  const uint32_t read = reader.load(kRelaxed);
  if (read != 0 && read != me) {
    return format("block %u writes an element of %s that another block reads", me - 1,
                  region.name.c_str());
  }
  return {};
}

// Notes reads of four elements at once; false, and nothing noted, if another block wrote one of
// them.
bool note_reads(std::atomic<uint32_t>* writer, std::atomic<uint32_t>* reader, uint32_t me) {
  const __m128i mine = _mm_set1_epi32(static_cast<int>(me)), nobody = _mm_setzero_si128();
  const __m128i wrote = _mm_loadu_si128(reinterpret_cast<const __m128i*>(writer));
  const __m128i who = _mm_and_si128(wrote, _mm_set1_epi32(0x7fffffff));
  const __m128i fine = _mm_or_si128(_mm_cmpeq_epi32(who, nobody), _mm_cmpeq_epi32(who, mine));
  if (_mm_movemask_epi8(fine) != 0xffff) return false;
  const __m128i read = _mm_loadu_si128(reinterpret_cast<const __m128i*>(reader));
  const __m128i alone = _mm_or_si128(_mm_cmpeq_epi32(read, nobody), _mm_cmpeq_epi32(read, mine));
  const __m128i many = _mm_set1_epi32(static_cast<int>(Owners::kMany));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(reader), _mm_blendv_epi8(many, mine, alone));
  return true;
}

}  // namespace

std::string GlobalMemory::note(const Region& region, uint64_t address, uint32_t bytes,
                               Access access, uint32_t block) {
  const uint64_t start = address - region.begin;
  if (region.initialised != nullptr) {
    if (access == Access::kWrite) {
      std::memset(region.initialised + start, 1, bytes);
    } else if (std::memchr(region.initialised + start, 0, bytes) != nullptr) {
      std::memset(region.initialised + start, 1, bytes);
      return "read of uninitialised memory of " + region.name;
    }
  }
  if (access != Access::kRead && region.constant) return "write to constant " + region.name;
  if (!region.owners) return {};
  const uint32_t me = block + 1;
  uint64_t i = start / region.granule;
  const uint64_t end = (start + bytes - 1) / region.granule + 1;
  for (; access == Access::kRead && i + 4 <= end; i += 4) {
    if (!note_reads(&region.owners->writer[i], &region.owners->reader[i], me)) break;
  }
  for (; i < end; ++i) {
    std::atomic<uint32_t>& writer = region.owners->writer[i];
    std::atomic<uint32_t>& reader = region.owners->reader[i];
    if (access != Access::kRead) {
      std::string wrong = note_write(writer, reader, me, access == Access::kAtomic, region);
      if (!wrong.empty()) return wrong;
      continue;
    }
    const uint32_t who = writer.load(std::memory_order_relaxed) & ~Owners::kAtomic;
    if (who != 0 && who != me) {
      return format("block %u reads an element of %s that block %u writes", block,
                    region.name.c_str(), who - 1);
    }
    const uint32_t read = reader.load(std::memory_order_relaxed);
    if (read != me) reader.store(read == 0 ? me : Owners::kMany, std::memory_order_relaxed);
  }
  return {};
}

}  // namespace emulator
