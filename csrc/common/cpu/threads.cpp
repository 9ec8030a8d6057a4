#include "common/cpu/threads.h"

#include <atomic>

#include "common/cpu/team.h"
#include "common/math.h"

#if defined(__SANITIZE_THREAD__)
#include <thread>
#include <vector>
#else
#include <omp.h>
#include <pthread.h>
#endif

namespace bigkernels {
namespace {

using Body = void (*)(void*, int64_t, int);
using TeamBody = void (*)(void*, TeamMember);

void run_serial(int64_t count, Body body, void* context) {
  for (int64_t tile = 0; tile < count; ++tile) body(context, tile, 0);
}

// Tiles that are not taken yet: [front, back) of a thread's own range, in one word.
struct alignas(64) Range {
  std::atomic<uint64_t> ends;

  void set(uint64_t front, uint64_t back) {
    ends.store(back << 32 | front, std::memory_order_relaxed);
  }

  // The front one for its owner, the back one for others; -1 if there is none left.
  int64_t take(bool own) {
    uint64_t seen = ends.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t front = seen & 0xffffffff, back = seen >> 32;
      if (front >= back) return -1;
      const uint64_t left = own ? back << 32 | (front + 1) : (back - 1) << 32 | front;
      if (ends.compare_exchange_weak(seen, left, std::memory_order_relaxed)) {
        return static_cast<int64_t>(own ? front : back - 1);
      }
    }
  }
};

// Each thread owns a contiguous range, the same in every call, so that what a core has in its cache
// is what it needs again; who is done helps the others from their ends.
class Ranges {
 public:
  Ranges(int threads, int64_t count)
      : used_(threads < kMost ? threads : kMost), count_(count), step_(1 + (count >> 31)) {
    const uint64_t steps = static_cast<uint64_t>((count + step_ - 1) / step_);
    for (int i = 0; i < used_; ++i) ranges_[i].set(steps * i / used_, steps * (i + 1) / used_);
  }

  void work(int thread, Body body, void* context) {
    const int own = thread % used_;
    for (int i = 0; i < used_; ++i) {
      Range& range = ranges_[(own + i) % used_];
      for (int64_t at = range.take(i == 0); at >= 0; at = range.take(i == 0)) {
        for (int64_t tile = at * step_; tile < (at + 1) * step_ && tile < count_; ++tile) {
          body(context, tile, thread);
        }
      }
    }
  }

 private:
  static constexpr int kMost = 64;
  const int used_;
  const int64_t count_;
  const int64_t step_;  // tiles taken at once: more than one only where 32 bits do not count them
  Range ranges_[kMost];
};

#if defined(__SANITIZE_THREAD__)

// ThreadSanitizer does not see the synchronisation inside libgomp and would report every region.
void run_parallel(int threads, int64_t count, Body body, void* context) {
  Ranges ranges(threads, count);
  std::vector<std::thread> team;
  for (int thread = 0; thread < threads; ++thread) {
    team.emplace_back([&, thread] { ranges.work(thread, body, context); });
  }
  for (std::thread& member : team) member.join();
}

void run_parallel(int threads, TeamBody body, void* context, Team* team) {
  std::vector<std::thread> members;
  for (int thread = 0; thread < threads; ++thread) {
    members.emplace_back([=] { body(context, {team, thread, threads}); });
  }
  for (std::thread& member : members) member.join();
}

bool must_be_serial() { return false; }

#else

// A child of fork() has its parent's OpenMP team on the books but none of its threads: the next
// region would wait for them for ever.
std::atomic<bool> g_team_exists{false};
std::atomic<bool> g_team_lost{false};

void watch_fork() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { g_team_lost = g_team_lost || g_team_exists; });
  (void)registered;
}

void run_parallel(int threads, int64_t count, Body body, void* context) {
  watch_fork();
  g_team_exists = true;
  Ranges ranges(threads, count);
#pragma omp parallel num_threads(threads)
  ranges.work(omp_get_thread_num(), body, context);
}

// OpenMP may give fewer threads than it was asked for.
void run_parallel(int threads, TeamBody body, void* context, Team* team) {
  watch_fork();
  g_team_exists = true;
#pragma omp parallel num_threads(threads)
  body(context, {team, omp_get_thread_num(), omp_get_num_threads()});
}

bool must_be_serial() { return g_team_lost || omp_in_parallel(); }

#endif

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void deal(Team* team, int size, int64_t count) {
  for (int thread = 0; thread < size; ++thread) {
    const uint64_t begin = count * thread / size, end = count * (thread + 1) / size;
    team->ranges[thread].items = begin << 32 | end;
  }
}

}  // namespace

void parallel_tiles(int num_threads, int64_t count, Body body, void* context) {
  const int threads = count < num_threads ? static_cast<int>(count) : num_threads;
  if (threads <= 1 || must_be_serial()) return run_serial(count, body, context);
  run_parallel(threads, count, body, context);
}

void next_phase(Team* team, int size, int64_t count) {
  if (size == 1) return deal(team, size, count);
  constexpr int kSpins = 1000;  // some tens of microseconds
  std::atomic_ref<uint32_t> arrived(team->arrived), phase(team->phase);
  const uint32_t before = phase.load(std::memory_order_acquire);
  if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size)) {
    deal(team, size, count);
    arrived.store(0, std::memory_order_relaxed);
    phase.store(before + 1, std::memory_order_release);
    phase.notify_all();
    return;
  }
  for (int spin = 0; spin < kSpins; ++spin) {
    if (phase.load(std::memory_order_acquire) != before) return;
    relax();
  }
  phase.wait(before, std::memory_order_acquire);
}

void run_team(int num_threads, TeamBody body, void* context) {
  Team team = {};
  const int threads = static_cast<int>(min_int(num_threads, kMostThreads));
  if (threads <= 1 || must_be_serial()) return body(context, {&team, 0, 1});
  run_parallel(threads, body, context, &team);
}

}  // namespace bigkernels
