// The switch of bigkernels.testing.poisoned_outputs, a plain C function.
#include <utility>

#include "tensors.h"

// Whether allocations go by way of torch's dispatcher from now on, where torch fills them as it was
// told to; returns what held before.
extern "C" __attribute__((visibility("default"))) int bigkernels_watch_allocations(int on) {
  return std::exchange(bigkernels::g_watched_allocations, on != 0);
}
