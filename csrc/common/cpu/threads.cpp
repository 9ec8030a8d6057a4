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

#if defined(__SANITIZE_THREAD__)

// ThreadSanitizer does not see the synchronisation inside libgomp and would report every region.
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

// Each thread owns a contiguous range, the same in every call, so that what a core has in its cache
// is what it needs again; who is done helps the others from their ends.
void parallel_tiles(int num_threads, int64_t count, Body body, void* context) {
  const int threads = static_cast<int>(min_int(min_int(count, num_threads), kMostThreads));
  if (threads <= 1 || count > UINT32_MAX || must_be_serial()) {
    return run_serial(count, body, context);
  }
  struct Tiles {
    Body body;
    void* context;
    int threads;
  } tiles = {body, context, threads};
  Team team;
  deal(&team, threads, count);
  run_parallel(
      threads,
      [](void* all, TeamMember member) {
        const Tiles& given = *static_cast<const Tiles*>(all);
        // Of the threads that were asked for some may be missing; their tiles are not.
        const TeamMember asked = {member.team, member.thread, given.threads};
        for (int64_t tile = asked.claim(); tile >= 0; tile = asked.claim()) {
          given.body(given.context, tile, member.thread);
        }
      },
      &tiles, &team);
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
  Team team;
  team.arrived = team.phase = 0;
  const int threads = static_cast<int>(min_int(num_threads, kMostThreads));
  if (threads <= 1 || must_be_serial()) return body(context, {&team, 0, 1});
  run_parallel(threads, body, context, &team);
}

}  // namespace bigkernels
