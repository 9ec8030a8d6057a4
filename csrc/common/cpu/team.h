// A team of threads that stays together through the phases of one long computation. Between two
// phases is a barrier; in a phase each thread takes items from a range of its own, then from the
// others' tails.
#pragma once

#include <cstdint>

namespace bigkernels {

constexpr int kMostThreads = 256;

struct Team {
  // The items a thread has left: begin << 32 | end, on a cache line of its own.
  struct alignas(64) Range {
    uint64_t items;
  };
  Range ranges[kMostThreads];
  alignas(64) uint32_t arrived;
  alignas(64) uint32_t phase;
};

// Waits until all `size` threads are here, then gives each a contiguous part of [0, count). Waiting
// threads spin for some microseconds, then sleep. (threads.cpp)
void next_phase(Team* team, int size, int64_t count);

// One thread's view of its team. (Members inline everywhere: a copy out of line would be compiled
// for one instruction set and linked for all.)
struct TeamMember {
  Team* team;
  int thread, size;

  // `count` items lie ahead, and all that the team did before is done.
  __attribute__((always_inline)) void begin(int64_t count) const { next_phase(team, size, count); }

  // The next item, or -1: none is left.
  __attribute__((always_inline)) int64_t claim() const {
    for (int other = 0; other < size; ++other) {
      uint64_t* items = &team->ranges[(thread + other) % size].items;
      uint64_t range = __atomic_load_n(items, __ATOMIC_RELAXED);
      for (;;) {
        const uint64_t first = range >> 32, end = range & 0xffffffffu;
        if (first >= end) break;
        const uint64_t left = other == 0 ? range + (uint64_t{1} << 32) : range - 1;
        if (__atomic_compare_exchange_n(items, &range, left, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
          return static_cast<int64_t>(other == 0 ? first : end - 1);
        }
      }
    }
    return -1;
  }
};

// Calls body(context, member) once on each thread of a team of at most num_threads: of one, on the
// calling thread, where parallel_tiles would be serial. body must not throw.
void run_team(int num_threads, void (*body)(void* context, TeamMember member), void* context);

// The same for a callable body(member).
template <class F>
static inline void run_team(int num_threads, const F& body) {
  run_team(
      num_threads,
      [](void* context, TeamMember member) { (*static_cast<const F*>(context))(member); },
      const_cast<F*>(&body));
}

}  // namespace bigkernels
