#include "common/cpu/workspace.h"

#include <atomic>
#include <cstdlib>

#include "common/math.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bigkernels {
namespace {

// More than this is given back after the call.
constexpr int64_t kMostKept = int64_t{1} << 28;

struct Region {
  void* data;
  int64_t bytes;
};

Region g_region = {nullptr, 0};
std::atomic<bool> g_taken{false};

Region allocate(int64_t bytes) {
  const int64_t whole = round_up(max_int(bytes, 1), kHugePage);
  void* data = std::aligned_alloc(kHugePage, static_cast<size_t>(whole));
  if (data != nullptr) advise_huge_pages(data, whole);
  return {data, data != nullptr ? whole : 0};
}

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

Workspace::Workspace(int64_t bytes) : data_(nullptr), kept_(false) {
  kept_ = bytes <= kMostKept && !g_taken.exchange(true, std::memory_order_acquire);
  if (kept_ && g_region.bytes >= bytes) {
    data_ = g_region.data;
    return;
  }
  const Region region = allocate(bytes);
  data_ = region.data;
  if (kept_) {
    std::free(g_region.data);
    g_region = region;
  }
}

Workspace::~Workspace() {
  if (kept_) {
    g_taken.store(false, std::memory_order_release);
  } else {
    std::free(data_);
  }
}

}  // namespace bigkernels
