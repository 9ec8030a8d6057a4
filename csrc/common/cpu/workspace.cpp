#include "common/cpu/workspace.h"

#include <atomic>
#include <cstdlib>

#include "common/math.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bigkernels {
namespace {

using Region = Workspace::Region;

// More than this is given back after the call.
constexpr int64_t kMostKept = int64_t{1} << 28;

Region g_region = {nullptr, 0};
std::atomic<bool> g_taken{false};

#if defined(__linux__)
// Fresh pages, which malloc's are not: what was small before stays so.
Region allocate(int64_t bytes) {
  const size_t whole = static_cast<size_t>(round_up(max_int(bytes, 1), kHugePage));
  const size_t page = static_cast<size_t>(kHugePage);
  void* found =
      mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return {nullptr, 0};
  char* begin = static_cast<char*>(found);
  const size_t before = (page - reinterpret_cast<uintptr_t>(begin) % page) % page;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + whole, page - before);
  advise_huge_pages(begin + before, static_cast<int64_t>(whole));
  return {begin + before, static_cast<int64_t>(whole)};
}

void release(Region region) {
  if (region.data != nullptr) munmap(region.data, static_cast<size_t>(region.bytes));
}
#else
Region allocate(int64_t bytes) {
  const int64_t whole = round_up(max_int(bytes, 1), kHugePage);
  void* data = std::aligned_alloc(kHugePage, static_cast<size_t>(whole));
  return {data, data != nullptr ? whole : 0};
}

void release(Region region) { std::free(region.data); }
#endif

}  // namespace

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), page = kHugePage;
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t end = (begin + static_cast<uintptr_t>(bytes)) / page * page;
  // Refused where the system has none: then the pages are small, which is no fault.
  if (end > first) (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

Workspace::Workspace(int64_t bytes) : own_({nullptr, 0}), kept_(false) {
  kept_ = bytes <= kMostKept && !g_taken.exchange(true, std::memory_order_acquire);
  if (kept_ && g_region.bytes >= bytes) return;
  const Region region = allocate(bytes);
  if (kept_) {
    release(g_region);
    g_region = region;
  } else {
    own_ = region;
  }
}

Workspace::~Workspace() {
  release(own_);
  if (kept_) g_taken.store(false, std::memory_order_release);
}

void* Workspace::data() const { return kept_ ? g_region.data : own_.data; }

}  // namespace bigkernels
