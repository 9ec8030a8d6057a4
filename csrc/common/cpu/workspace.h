// Memory for the time of one call that stays mapped between calls: no page is faulted in twice.
#pragma once

#include <cstdint>

namespace bigkernels {

// Uninitialised, begins at a huge page. One region is kept for the whole process; who comes while
// it is taken gets memory of their own.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const;  // null: there is no memory

  struct Region {
    void* data;
    int64_t bytes;
  };

 private:
  Region own_;
  bool kept_;
};

constexpr int64_t kHugePage = int64_t{1} << 21;

// Asks for huge pages for what lies wholly inside [data, data + bytes).
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace bigkernels
